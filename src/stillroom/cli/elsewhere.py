"""Options of the papers' scripts, by the verb that does their work: what is in their place."""

from __future__ import annotations

_UNREAD = "nothing reads it in the released code"
_VIEWS = "what views are drawn is in the protocol (stillroom evaluate --protocols)"
_STORE = "what is made before lies in the store, by key"
_GPUS = "name one device, --device cuda:N, or several processes, --workers"
_LOSS = "the loss is in the protocol, loss=dist being another: NAME+loss=dist behind --protocol"
_IMPORTED = "files of tensors become a set first: stillroom import --data-dir ..., then evaluate it"
_RATE = "the rate is learned, and part of the set"
# Of trajectory matching's buffers and distillations.
_FOLLOWED = {
    "--num-experts": "it is --num here",
    "--lr-teacher": "it is --lr here",
    "--batch-size": "it is --batch here",
    "--dataset": "it is --data here",
    "--model": "it is --arch here",
    "--l2": "it is --weight-decay here",
    "--mom": "it is --momentum here",
    "--decay": "nothing reads it in the released code; rates are constant",
    "--batch-real": "nothing reads it in the released code",
    "--batch-train": "it is --batch here",
    "--train-epochs": "it is --epochs here",
    "--buffer-path": "experts lie in the store, by key; distill takes those of others",
    "--save-interval": "every epoch of --since to --upto is kept",
    "--sort-method": "it is --order.scores here",
    "--rho-max": "it is --rho here, which is constant",
}
_STEPS = {
    "--lr-teacher": "it is --rate here",
    "--lr-lr": "it is --rate.lr here",
    "--lr-img": "it is --images.lr here",
    "--lr-y": "it is --labels.lr here",
    "--dataset": "it is --data here",
    "--model": "it is --arch here",
    "--syn-steps": "it is --inner here",
    "--batch-syn": "it is --batch here",
    "--expert-epochs": "it is --window.epochs here",
    "--max-start-epoch": "it is --window.last here",
    "--min-start-epoch": "it is --window.first here",
    "--current-max-start-epoch": "it is --window.begin here",
    "--expansion-end-epoch": "it is --window.grow here",
    "--max-experts": "it is --experts here",
    "--max-files": "it is --experts here",
    "--buffer-path": "it is --buffers here",
    "--pix-init": "it is --init here",
    "--threshold": "it is --gate here",
    "--cfg": "a configuration becomes a recipe: stillroom recipes convert edf FILE",
}
# Of recover, of whichever method.
_RECOVER = {
    "--arch-name": "it does nothing in the released code; name the networks with --observers",
    "--average-grad-ratio": _UNREAD,
    "--store-best-images": "the last images are the set, as there",
    "--exp-name": "it is --out here",
    "--syn-data-path": "it is --out here",
    "--batch-size": "it is --batch here, the images that share statistics",
    "--gpu-id": _GPUS,
    "--ipc-number": "it is --ipc here",
    "--iteration": "it is --steps here",
    "--category-aware": "it is --targets here: classes for global, or local",
    "--training-momentum": "it is --momentum here",
    "--drop-rate": "it is --conv-drop here",
    "--r-loss": "it is --weight here",
    "--first-multiplier": "it is --first here",
    "--nuc-norm": "it is --priors.spectrum here",
    "--tau": "it is --priors.spectrum-tau here",
    "--l2-scale": "it is --priors.l2 here",
    "--tv-l2": "it is --priors.tv here",
    "--jitter": "it is --views.jitter here",
    "--flatness": "it is --flat.weight here",
    "--flatness-weight": "it is --flat.weight here",
    "--ema-alpha": "it is --flat.tau here",
    "--verifier": "it is --watch original-model-accuracy here",
    "--verifier-arch": "it is --watch original-model-accuracy here",
    "--statistic-path": "statistics lie in the store; EDC's are read by --statistics",
    "--pre-train-path": "weights stand behind the network's name: --observers NAME=FILE",
    "--initial-img-dir": "it is --init-from here",
}
_TAUGHT = {
    "--gpu-id": _GPUS,
    "--keep-topk": f"{_UNREAD}; labels of the largest K are a codec: prepare relabels --codec",
    "--shuffle-patch": f"{_UNREAD}; those of rded@1 are shuffled",
    "--class-number": f"{_UNREAD}; classes are those of the data",
    "--mix-type": _VIEWS,
    "--min-scale-crops": _VIEWS,
    "--max-scale-crops": _VIEWS,
    "--use-fp16": "labels are in fp16 unless prepare relabels --codec says otherwise",
    "--candidate-number": "those who label are named by --teachers",
    "--fkd-path": "labels lie in the set's folder, or in the store",
    "--mode": "labels that are there are used, others made",
    "--input-size": "a view is as large as an image of the set",
    "--batch-size": "the batch is in the protocol; NAME+batch=B behind --protocol is another",
    "-T": "the temperature is in the protocol: NAME+temperature=T behind --protocol is another",
}
ELSEWHERE: dict[str, dict[str, str]] = {
    "distill": _RECOVER,
    "distill mtt": _STEPS,
    "prepare experts": _FOLLOWED,
    "prepare": {
        **_TAUGHT,
        "--temperature": f"of labels {_UNREAD}",
        "--train-epochs": "it is --epochs here",
        "--squeeze-path": _STORE,
        "--model": "it is --arch here",
        "--dataset": "it is --data here",
        "--fkd-seed": "it is --seed here",
    },
    "evaluate": {
        **_TAUGHT,
        "--data-dir": _IMPORTED,
        "--label-dir": _IMPORTED,
        "--lr-dir": _IMPORTED,
        "--lr-teacher": _RATE,
        "--batch-real": _UNREAD,
        "--eval-mode": "the networks of students are named by --arch",
        "--epoch-eval-train": "it is NAME+epochs=N behind --protocol",
        "--batch-train": "it is NAME+batch=B behind --protocol",
        "--dsa-strategy": "what students see is in the protocol, or the set's own",
        "--parall-eva": "it is --workers here",
        "--wandb-project": "no service is asked; records.jsonl holds every number",
        "--wandb-api-key": "no service is asked; leave it out",
        "--gradient-accumulation-steps": "it is NAME+pieces=K behind --protocol",
        "--temperature": "it is NAME+temperature=T behind --protocol",
        "--ce-weight": "it is NAME+ce_weight=W behind --protocol",
        "--loss-type": f"{_LOSS}; of mse_gt_sam no number was made",
        "--ls-type": "the schedule is in the protocol (stillroom evaluate --protocols); of alrs no "
        "number was made",
        "--alrs-dr": "no number was made with that schedule",
        "--st": "the slow-down of the schedule is in the protocol",
        "--ema-dr": "averaging is in the protocol",
        "--sgd": "the optimiser is in the protocol; sgd: edc-cifar100-released, edc-tiny-released",
        "--sgd-lr": "the rate is in the protocol; NAME+lr=R behind --protocol is another",
        "--adamw-lr": "the rate is in the protocol; NAME+lr=R behind --protocol is another",
        "--learning-rate": "the rate is in the protocol; NAME+lr=R behind --protocol is another",
        "--adamw-weight-decay": "it is NAME+weight_decay=W behind --protocol",
        "--weight-decay": "it is NAME+weight_decay=W behind --protocol",
        "--momentum": "it is NAME+momentum=M behind --protocol, where that has sgd",
        "--epochs": "it is NAME+epochs=N behind --protocol",
        "--model": "it is --arch here",
        "--output-dir": "it is --save-models here",
        "--train-dir": "the images to learn from are the set",
        "--val-dir": "the images to test on are those of the set's data, --data",
    },
}
_SAME = {
    **dict.fromkeys(("sre2l", "cda", "gvbsm", "edc", "edc-paper", "edc-released"), "distill"),
    **dict.fromkeys(("mtt", "ftd", "tesla", "datm", "pad", "edf"), "distill mtt"),
}


def meant(verb: str, name: str, flag: str) -> str:
    """What is in the place of a flag of the papers' scripts; nothing if it is none of those.

    `name` stands behind the verb: of distill, the method.
    """
    work = _SAME.get(name, "") if verb == "distill" else verb
    flag = flag if len(flag) == 2 else flag.lower().replace("_", "-")
    known = {**ELSEWHERE.get(work, {}), **ELSEWHERE.get(f"{verb} {name}", {})}
    told = known.get(flag, "")
    return f"{flag} of the papers' scripts: {told}" if told else ""
