"""Options of the papers' scripts that are refused here, each with its reason."""

from __future__ import annotations

_UNREAD = "nothing reads it in the released code"
_VIEWS = "what views are drawn is in the protocol (stillroom evaluate --protocols)"
REFUSED = {
    "--arch-name": "it does nothing in the released code; name the networks with --observers",
    "--average-grad-ratio": _UNREAD,
    "--average_grad_ratio": _UNREAD,
    "--wandb-project": "no service is asked; records.jsonl holds every number, metrics.jsonl every "
    "curve",
    "--wandb-api-key": "no service is asked; leave it out",
    "--gradient-accumulation-steps": "it is +pieces=K behind the name of the protocol",
    "--alrs-dr": "no number was made with that schedule",
    "--keep-topk": f"{_UNREAD}; labels of the largest K are a codec: prepare relabels --codec",
    "--shuffle-patch": f"{_UNREAD}; those of rded@1 are shuffled",
    "--temperature": f"of labels {_UNREAD}; that of a loss is +temperature=T behind a protocol",
    "--class-number": f"{_UNREAD}; classes are those of the data",
    "--mix-type": _VIEWS,
    "--min-scale-crops": _VIEWS,
    "--max-scale-crops": _VIEWS,
    "--loss-type": "the loss is in the protocol; +loss=dist behind its name is another",
    "--ls-type": "the schedule is in the protocol (stillroom evaluate --protocols)",
    "--gpu-id": "name one device, --device cuda:N, or several processes, --workers",
    "--ipc-number": "it is --ipc here",
    "--iteration": "it is --steps here",
    "--category-aware": "it is --targets here: classes for global, or local",
    "--training-momentum": "it is --momentum here",
    "--drop-rate": "it is --conv-drop here",
    "--r-loss": "it is --weight here",
    "--statistic-path": "statistics lie in the store; EDC's are read by --statistics",
    "--initial-img-dir": "it is --init-from here",
}
