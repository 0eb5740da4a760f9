"""A pack of four random frames without edges."""

from tests.toy_packs import toy_frame, write_toy_pack

SIZE = (3, 4)
CLASSES = 5


def frame(number):
    whole = toy_frame(number, size=SIZE, classes=CLASSES)
    return {name: array for name, array in whole.items() if name != "edges"}


def write(folder, *, frames=frame, train=3, test=None, classes=CLASSES, **options):
    return write_toy_pack(
        folder, size=SIZE, classes=classes, frame=frames, train=train,
        test=[frame(100) | (test or {})], **options,
    )  # fmt: skip
