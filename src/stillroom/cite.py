"""BibTeX of the papers behind a set, by the keys that methods name."""

from __future__ import annotations

PAPERS = {
    "zhao2023dm": """@inproceedings{zhao2023dm,
  title     = {Dataset Condensation with Distribution Matching},
  author    = {Zhao, Bo and Bilen, Hakan},
  booktitle = {IEEE/CVF Winter Conference on Applications of Computer Vision},
  year      = {2023},
  note      = {arXiv:2110.04181}
}""",
    "zhao2021dsa": """@inproceedings{zhao2021dsa,
  title     = {Dataset Condensation with Differentiable Siamese Augmentation},
  author    = {Zhao, Bo and Bilen, Hakan},
  booktitle = {International Conference on Machine Learning},
  year      = {2021},
  note      = {arXiv:2102.08259}
}""",
    "zhao2021dc": """@inproceedings{zhao2021dc,
  title     = {Dataset Condensation with Gradient Matching},
  author    = {Zhao, Bo and Mopuri, Konda Reddy and Bilen, Hakan},
  booktitle = {International Conference on Learning Representations},
  year      = {2021},
  note      = {arXiv:2006.05929}
}""",
    "cazenavette2022mtt": """@inproceedings{cazenavette2022mtt,
  title     = {Dataset Distillation by Matching Training Trajectories},
  author    = {Cazenavette, George and Wang, Tongzhou and Torralba, Antonio and Efros, Alexei A.
               and Zhu, Jun-Yan},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2022},
  note      = {arXiv:2203.11932}
}""",
    "du2023ftd": """@inproceedings{du2023ftd,
  title     = {Minimizing the Accumulated Trajectory Error to Improve Dataset Distillation},
  author    = {Du, Jiawei and Jiang, Yidi and Tan, Vincent Y. F. and Zhou, Joey Tianyi
               and Li, Haizhou},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2023},
  note      = {arXiv:2211.11004}
}""",
    "cui2023tesla": """@inproceedings{cui2023tesla,
  title     = {Scaling Up Dataset Distillation to {ImageNet-1K} with Constant Memory},
  author    = {Cui, Justin and Wang, Ruochen and Si, Si and Hsieh, Cho-Jui},
  booktitle = {International Conference on Machine Learning},
  year      = {2023},
  note      = {arXiv:2211.10586}
}""",
    "li2024pad": """@misc{li2024pad,
  title  = {Prioritize Alignment in Dataset Distillation},
  author = {Li, Zekai and Guo, Ziyao and Zhao, Wangbo and Zhang, Tianle and Cheng, Zhi-Qi
            and Khaki, Samir and Zhang, Kaipeng and Sajedi, Ahmad and Plataniotis, Konstantinos N.
            and Wang, Kai and You, Yang},
  year   = {2024},
  note   = {arXiv:2408.03360}
}""",
    "wang2025edf": """@inproceedings{wang2025edf,
  title     = {Emphasizing Discriminative Features for Dataset Distillation in Complex Scenarios},
  author    = {Wang, Kai and Li, Zekai and Cheng, Zhi-Qi and Khaki, Samir and Sajedi, Ahmad
               and Vedantam, Ramakrishna and Plataniotis, Konstantinos N. and Hauptmann, Alexander
               and You, Yang},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2025},
  note      = {arXiv:2410.17193}
}""",
    "guo2024datm": """@inproceedings{guo2024datm,
  title     = {Towards Lossless Dataset Distillation via Difficulty-Aligned Trajectory Matching},
  author    = {Guo, Ziyao and Wang, Kai and Cazenavette, George and Li, Hui and Zhang, Kaipeng
               and You, Yang},
  booktitle = {International Conference on Learning Representations},
  year      = {2024},
  note      = {arXiv:2310.05773}
}""",
    "lu2023pretrained": """@misc{lu2023pretrained,
  title  = {Can Pre-trained Models Assist in Dataset Distillation?},
  author = {Lu, Yao and Chen, Xuguang and Zhang, Yuchen and Gu, Jianyang and Zhang, Tianle
            and Zhang, Yifan and Yang, Xiaoniu and Xuan, Qi and Wang, Kai and You, Yang},
  year   = {2023},
  note   = {arXiv:2310.03295}
}""",
    "welling2009herding": """@inproceedings{welling2009herding,
  title     = {Herding Dynamical Weights to Learn},
  author    = {Welling, Max},
  booktitle = {International Conference on Machine Learning},
  year      = {2009}
}""",
    "yin2023sre2l": """@inproceedings{yin2023sre2l,
  title     = {Squeeze, Recover and Relabel: Dataset Condensation at {ImageNet} Scale From A New
               Perspective},
  author    = {Yin, Zeyuan and Xing, Eric and Shen, Zhiqiang},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2023},
  note      = {arXiv:2306.13092}
}""",
    "yin2024cda": """@article{yin2024cda,
  title     = {Dataset Distillation in Large Data Era},
  author    = {Yin, Zeyuan and Shen, Zhiqiang},
  journal   = {arXiv preprint},
  year      = {2023},
  note      = {arXiv:2311.18838}
}""",
    "shao2024gvbsm": """@inproceedings{shao2024gvbsm,
  title     = {Generalized Large-Scale Data Condensation via Various Backbone and Statistical
               Matching},
  author    = {Shao, Shitong and Yin, Zeyuan and Zhou, Muxin and Zhang, Xindong and Shen, Zhiqiang},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2024},
  note      = {arXiv:2311.17950}
}""",
    "shao2024edc": """@inproceedings{shao2024edc,
  title     = {Elucidating the Design Space of Dataset Condensation},
  author    = {Shao, Shitong and Zhou, Zikai and Chen, Huanran and Shen, Zhiqiang},
  booktitle = {Advances in Neural Information Processing Systems},
  year      = {2024},
  note      = {arXiv:2404.13733}
}""",
    "sun2024rded": """@inproceedings{sun2024rded,
  title     = {On the Diversity and Realism of Distilled Dataset: An Efficient Dataset Distillation
               Paradigm},
  author    = {Sun, Peng and Shi, Bei and Yu, Daiwei and Lin, Tao},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year      = {2024},
  note      = {arXiv:2312.03526}
}""",
    "sener2018coreset": """@inproceedings{sener2018coreset,
  title     = {Active Learning for Convolutional Neural Networks: A Core-Set Approach},
  author    = {Sener, Ozan and Savarese, Silvio},
  booktitle = {International Conference on Learning Representations},
  year      = {2018},
  note      = {arXiv:1708.00489}
}""",
}


def bibtex(keys: object) -> str:
    """The entries of known keys, in order; a line of text where there is none.

    Keys come out of a set's metadata and are foreign: unknown ones are named, not followed.
    """
    named = [str(k)[:60] for k in keys] if isinstance(keys, (list, tuple)) else []
    entries = [PAPERS[k] for k in named if k in PAPERS]
    unknown = [k for k in named if k not in PAPERS]
    if unknown:
        entries.append(f"% no entry for: {', '.join(unknown)}")
    return "\n\n".join(entries) or "% this set names no paper"
