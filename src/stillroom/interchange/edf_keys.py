"""Keys of the configuration files of EDF, DATM and PAD: defaults there, and what became of them.

Specification of trajectory matching, 5.4.
"""

from __future__ import annotations

from typing import Any, Literal

from stillroom.config import DSA

# What a key is where a file leaves it out, in the code that reads these files.
DEFAULTS: dict[str, Any] = {
    "dataset": "CIFAR10",
    "subset": "imagenette",
    "model": "ConvNet",
    "res": 32,
    "ipc": 1,
    "eval_mode": "S",
    "num_eval": 5,
    "eval_it": 100,
    "epoch_eval_train": 1000,
    "Iteration": 5000,
    "lr_img": 1000,
    "lr_teacher": 0.01,
    "lr_lr": 1e-5,
    "lr_y": 2.0,
    "Momentum_y": 0.9,
    "batch_syn": 256,
    "batch_train": 256,
    "pix_init": "samples_predicted_correctly",
    "dsa": True,
    "dsa_strategy": DSA.partition(":")[2],
    "no_aug": False,
    "expert_epochs": 2,
    "syn_steps": 80,
    "max_start_epoch": 25,
    "min_start_epoch": 0,
    "Sequential_Generation": True,
    "expansion_end_epoch": 3000,
    "current_max_start_epoch": 20,
    "threshold": 1.0,
    "zca": True,
    "max_files": None,
    "max_experts": None,
    "interval": 50,
    "act_threshold": -1.0,
    "model_name": "",
    "target_layer_deep": "",
    "Initialize_Label_With_Another_Model": False,
    "Initialize_Label_Model": "",
    "Label_Model_Timestamp": -1,
}
# These have no default there, or one that cannot run.
OWN = ("beta", "loss_threshold", "depth_ratio", "loss_ratio")
OF_EDF = ("beta", "interval", "act_threshold", "loss_threshold", "model_name", "target_layer_deep")
OF_PAD = ("depth_ratio", "loss_ratio")
Family = Literal["edf", "datm", "pad"]
DEAD = {
    "ema_decay": "nothing reads it",
    "lr_init": "nothing reads it",
    "record_loss": "nothing reads it",
    "init_frozen": "nothing reads it",
    "target_layer_shallow": "nothing reads it",
    "loss_threshold_low": "nothing reads it",
    "loss_threshold_high": "nothing reads it",
    "batch_real": "of a check of real images that decides nothing",
    "project": "of the tracker of experiments",
    "force_save": "every kept step is saved whole",
    "load_all": "experts are read row by row",
    "parall_eva": "see --workers",
    "skip_first_eva": "what a run starts from is no step of it",
    "device": "see --device",
    "data_path": "see --data-root",
    "buffer_path": "experts are trained here; those of old files: --buffers FOLDER",
    "activation_model_path": "the network that looks is trained, or brought, see docs/methods/mtt",
    "Initialize_Label_Model_Dir": "the network that labels is trained, or brought, as NAME=FILE",
    "canvas_size": "of textures",
    "canvas_samples": "of textures",
}
REFUSED = {
    "texture": (False, "textures have no counterpart"),
}
DATA = {"CIFAR10": "cifar10", "CIFAR100": "cifar100", "Tiny": "tiny-imagenet"}
NETS = {"ConvNet": "convnet3", "AlexNet": "alexnet", "VGG11": "vgg11", "ResNet18": "resnet18"}
THEIRS = {  # the keys that fields come from, for what is wrong with them
    "method.window": "min_start_epoch, max_start_epoch, expansion_end_epoch",
    "method.window.last": "max_start_epoch",
    "method.window.first": "min_start_epoch",
    "method.window.begin": "current_max_start_epoch",
    "method.window.grow": "expansion_end_epoch",
    "method.window.epochs": "expert_epochs",
    "method": "max_start_epoch, expert_epochs",
    "method.inner": "syn_steps",
    "method.batch": "batch_syn",
    "method.rate": "lr_teacher",
    "method.gate": "threshold",
    "method.experts": "max_files, max_experts",
    "method.areas.beta": "beta",
    "method.areas.every": "interval",
    "method.areas.threshold": "act_threshold",
    "outer.steps": "Iteration",
    "outer.images.lr": "lr_img",
    "outer.labels.lr": "lr_y",
    "outer.labels.momentum": "Momentum_y",
    "outer.rate.lr": "lr_lr",
    "evaluate.0.seeds": "num_eval",
    "evaluate.0.protocol": "epoch_eval_train, batch_train",
}
POOLS = {"S": ["auto"], "M": ["convnet3", "alexnet", "vgg11", "resnet18"]}
# imagefruit's files for 1 and 10 images a class are copies of that for 50.
FRUIT: dict[int, dict[str, Any]] = {
    1: {"current_max_start_epoch": 5, "max_start_epoch": 10, "interval": 50, "loss_threshold": 0},
    10: {"current_max_start_epoch": 10, "max_start_epoch": 20, "loss_threshold": 0.25},
}
