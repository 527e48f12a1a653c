"""Which classes the ImageNet subsets consist of: facts, in the order of their labels.

Indices are positions in the sorted WordNet ids of ImageNet-1K. Sources: the published code of the
trajectory-matching methods (imagenette to imageyellow, in1k-cifar10), IDC's list of 100 classes
(imagenet-10), and Comp-DD. Other papers use slightly different lists for imagefruit and
imageyellow; numbers compare only where the lists are the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from stillroom.data.raw import RawSplits, select
from stillroom.errors import StillroomError

SUBSETS: dict[str, tuple[int, ...]] = {
    "imagenette": (0, 217, 482, 491, 497, 566, 569, 571, 574, 701),
    "imagewoof": (193, 182, 258, 162, 155, 167, 159, 273, 207, 229),
    "imagemeow": (281, 282, 283, 284, 285, 291, 292, 290, 289, 287),
    "imagesquawk": (84, 130, 88, 144, 145, 22, 96, 9, 100, 89),
    "imagefruit": (953, 954, 949, 950, 951, 957, 952, 945, 943, 948),
    "imageyellow": (309, 986, 954, 951, 987, 779, 599, 291, 72, 11),
    "imagenet-10": (452, 64, 374, 236, 993, 176, 882, 904, 503, 74),
    "in1k-cifar10": (404, 136, 130, 283, 354, 252, 31, 339, 628, 864),
    # Comp-DD. Its published list names banjo twice in music-hard, so that subset has nine classes.
    "comp-dd/bird-easy": (130, 140, 83, 142, 134, 139, 88, 90, 144, 21),
    "comp-dd/bird-hard": (14, 19, 91, 15, 13, 95, 10, 16, 20, 12),
    "comp-dd/car-easy": (581, 535, 717, 817, 511, 436, 656, 757, 661, 751),
    "comp-dd/car-hard": (802, 660, 829, 627, 609, 575, 573, 867, 734, 408),
    "comp-dd/dog-easy": (193, 180, 227, 167, 246, 248, 224, 177, 269, 252),
    "comp-dd/dog-hard": (239, 238, 247, 195, 151, 266, 157, 181, 154, 217),
    "comp-dd/fish-easy": (5, 1, 6, 397, 390, 3, 392, 393, 148, 147),
    "comp-dd/fish-hard": (0, 391, 389, 395, 4, 396, 2, 394, 50, 103),
    "comp-dd/insect-easy": (323, 314, 310, 309, 306, 308, 302, 313, 303, 315),
    "comp-dd/insect-hard": (301, 326, 324, 305, 325, 300, 318, 320, 70, 322),
    "comp-dd/snake-easy": (64, 57, 55, 56, 61, 62, 68, 67, 54, 60),
    "comp-dd/snake-hard": (46, 42, 41, 40, 43, 58, 65, 59, 53, 52),
    "comp-dd/round-easy": (417, 560, 953, 826, 426, 981, 430, 890, 746, 768),
    "comp-dd/round-hard": (852, 805, 736, 892, 429, 574, 722, 522, 752, 971),
    "comp-dd/music-easy": (542, 687, 494, 566, 642, 513, 875, 683, 889, 881),
    "comp-dd/music-hard": (420, 594, 579, 402, 776, 486, 401, 546, 558),
}
SIDES = {"imagenet-10": 224}  # px, as IDC, RDED and EDC have it; of the others 128

WNIDS: dict[int, str] = {
    0: "n01440764", 1: "n01443537", 2: "n01484850", 3: "n01491361", 4: "n01494475", 5: "n01496331",
    6: "n01498041", 9: "n01518878", 10: "n01530575", 11: "n01531178", 12: "n01532829",
    13: "n01534433", 14: "n01537544", 15: "n01558993", 16: "n01560419", 19: "n01592084",
    20: "n01601694", 21: "n01608432", 22: "n01614925", 31: "n01644373", 40: "n01682714",
    41: "n01685808", 42: "n01687978", 43: "n01688243", 46: "n01693334", 50: "n01698640",
    52: "n01728572", 53: "n01728920", 54: "n01729322", 55: "n01729977", 56: "n01734418",
    57: "n01735189", 58: "n01737021", 59: "n01739381", 60: "n01740131", 61: "n01742172",
    62: "n01744401", 64: "n01749939", 65: "n01751748", 67: "n01755581", 68: "n01756291",
    70: "n01770081", 72: "n01773157", 74: "n01773797", 83: "n01798484", 84: "n01806143",
    88: "n01818515", 89: "n01819313", 90: "n01820546", 91: "n01824575", 95: "n01843065",
    96: "n01843383", 100: "n01860187", 103: "n01873310", 130: "n02007558", 134: "n02012849",
    136: "n02017213", 139: "n02025239", 140: "n02027492", 142: "n02033041", 144: "n02051845",
    145: "n02056570", 147: "n02066245", 148: "n02071294", 151: "n02085620", 154: "n02086079",
    155: "n02086240", 157: "n02086910", 159: "n02087394", 162: "n02088364", 167: "n02089973",
    176: "n02091831", 177: "n02092002", 180: "n02093428", 181: "n02093647", 182: "n02093754",
    193: "n02096294", 195: "n02096585", 207: "n02099601", 217: "n02102040", 224: "n02105056",
    227: "n02105412", 229: "n02105641", 236: "n02107142", 238: "n02107574", 239: "n02107683",
    246: "n02109047", 247: "n02109525", 248: "n02109961", 252: "n02110627", 258: "n02111889",
    266: "n02113712", 269: "n02114367", 273: "n02115641", 281: "n02123045", 282: "n02123159",
    283: "n02123394", 284: "n02123597", 285: "n02124075", 287: "n02127052", 289: "n02128757",
    290: "n02128925", 291: "n02129165", 292: "n02129604", 300: "n02165105", 301: "n02165456",
    302: "n02167151", 303: "n02168699", 305: "n02172182", 306: "n02174001", 308: "n02190166",
    309: "n02206856", 310: "n02219486", 313: "n02231487", 314: "n02233338", 315: "n02236044",
    318: "n02264363", 320: "n02268853", 322: "n02277742", 323: "n02279972", 324: "n02280649",
    325: "n02281406", 326: "n02281787", 339: "n02389026", 354: "n02437312", 374: "n02488291",
    389: "n02514041", 390: "n02526121", 391: "n02536864", 392: "n02606052", 393: "n02607072",
    394: "n02640242", 395: "n02641379", 396: "n02643566", 397: "n02655020", 401: "n02672831",
    402: "n02676566", 404: "n02690373", 408: "n02704792", 417: "n02782093", 420: "n02787622",
    426: "n02794156", 429: "n02799071", 430: "n02802426", 436: "n02814533", 452: "n02869837",
    482: "n02979186", 486: "n02992211", 491: "n03000684", 494: "n03017168", 497: "n03028079",
    503: "n03062245", 511: "n03100240", 513: "n03110669", 522: "n03134739", 535: "n03208938",
    542: "n03250847", 546: "n03272010", 558: "n03372029", 560: "n03379051", 566: "n03394916",
    569: "n03417042", 571: "n03425413", 573: "n03444034", 574: "n03445777", 575: "n03445924",
    579: "n03452741", 581: "n03459775", 594: "n03495258", 599: "n03530642", 609: "n03594945",
    627: "n03670208", 628: "n03673027", 642: "n03721384", 656: "n03770679", 660: "n03776460",
    661: "n03777568", 683: "n03838899", 687: "n03854065", 701: "n03888257", 717: "n03930630",
    722: "n03942813", 734: "n03977966", 736: "n03982430", 746: "n04019541", 751: "n04037443",
    752: "n04039381", 757: "n04065272", 768: "n04118538", 776: "n04141076", 779: "n04146614",
    802: "n04252077", 805: "n04254680", 817: "n04285008", 826: "n04328186", 829: "n04335435",
    852: "n04409515", 864: "n04461696", 867: "n04467665", 875: "n04487394", 881: "n04515003",
    882: "n04517823", 889: "n04536866", 890: "n04540053", 892: "n04548280", 904: "n04589890",
    943: "n07718472", 945: "n07720875", 948: "n07742313", 949: "n07745940", 950: "n07747607",
    951: "n07749582", 952: "n07753113", 953: "n07753275", 954: "n07753592", 957: "n07768694",
    971: "n09229709", 981: "n09835506", 986: "n12057211", 987: "n12144580", 993: "n13037406",
}  # fmt: skip

_WNID = re.compile(r"n\d{8}")


def wnids(name: str) -> tuple[str, ...]:
    """WordNet ids of a subset, in label order."""
    return tuple(WNIDS[index] for index in SUBSETS[name])


def indices(classes: Sequence[str]) -> tuple[int, ...] | None:
    """Positions in ImageNet-1K of classes that go by their WordNet ids; None if one does not.

    Of the classes of the subsets above.
    """
    known = {wnid: index for index, wnid in WNIDS.items()}
    found = tuple(known.get(name, -1) for name in classes)
    return None if -1 in found else found


def cut(raw: RawSplits, name: str, source: str) -> RawSplits:
    """Cut the classes of subset `name` out of an ImageNet; the classes get their WordNet ids.

    Classes are found by WordNet id, so that part of an ImageNet will do, or by index where all
    1000 classes are there under other names. A source of just the subset's number of classes
    under other names is taken as it is.
    Raises: StillroomError naming the first class that `source` lacks.
    """
    wanted = wnids(name)
    position = {label: at for at, label in enumerate(raw.classes)}
    if any(_WNID.fullmatch(label) for label in raw.classes):
        for wnid in wanted:
            if wnid not in position:
                raise StillroomError(f"{source}: {name} needs class {wnid}, which is not there")
        return select(raw, {position[wnid]: wnid for wnid in wanted})
    if len(raw.classes) == 1000:
        return select(raw, dict(zip(SUBSETS[name], wanted, strict=True)))
    if len(raw.classes) == len(wanted):
        return raw
    raise StillroomError(
        f"{source}: {len(raw.classes)} classes that are not named by WordNet id; {name} needs "
        f"folders such as {wanted[0]}"
    )
