"""The built-in view presets: what is done to an image before its puzzle view and its anchor are made, and how likely.

To add one, add an entry to `PRESETS` that says where it comes from: data/view_params.py draws its numbers and
data/graph.py applies them; with labels the puzzle view alone is made. Those for one kind of picture are gathered from
what others have published for it; none of them has been compared with another here.
"""

from __future__ import annotations

from fastfgssl.config.views import Affine, Crop, Jitter, Preset, ViewSpec

_MOST_OF_IT = Crop(area=(0.6, 1.0))
"""Small crops lose the lesion, or show one of another class."""


def _both(view: ViewSpec) -> Preset:
    """Both views distorted in the same way, each with random numbers of its own."""
    return Preset(puzzle=view, anchor=view)


PRESETS = {
    # the method's own list: the whole image, no crop (the authors' published code)
    "paper": Preset(
        puzzle=ViewSpec(blur=1.0, flip=0.5, grayscale=0.2),
        anchor=ViewSpec(blur=0.1, grayscale=0.2, solarise=0.2),
    ),
    # Barlow Twins (arXiv 2103.03230), section 2.2
    "barlow": Preset(
        puzzle=ViewSpec(
            crop=Crop(),
            jitter=Jitter(p=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1),
            blur=1.0,
            flip=0.5,
            grayscale=0.2,
        ),
        anchor=ViewSpec(
            crop=Crop(),
            jitter=Jitter(p=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1),
            blur=0.1,
            flip=0.5,
            grayscale=0.2,
            solarise=0.2,
        ),
        interpolation="cubic",
    ),
    # radiographs, CT, MR: intensity carries the meaning, so it is neither inverted nor recoloured
    "grayscale": Preset(
        puzzle=ViewSpec(
            affine=Affine(degrees=10.0, scale=(0.9, 1.1)),
            jitter=Jitter(p=0.8, brightness=0.2, contrast=0.2),
            blur=1.0,
            flip=0.5,
        ),
        anchor=ViewSpec(
            affine=Affine(degrees=10.0, scale=(0.9, 1.1)),
            jitter=Jitter(p=0.8, brightness=0.2, contrast=0.2),
            blur=0.1,
        ),
    ),
    # Crops of 0.7 and 0.75 to 1, turns, flips in both directions: what works without labels for SelfClean (NeurIPS
    # 2024) and VirtualSpaceman/ssl-skin-lesions. With labels, crops of 0.4 to 1, flips and colour together did best of
    # 13 lists for melanoma (arXiv 1809.01442). Colour is jittered less than in these: its statistics alone tell much of
    # the diagnosis (docs/results.md).
    "dermoscopy": _both(
        ViewSpec(
            crop=_MOST_OF_IT,
            jitter=Jitter(p=0.8, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.02),
            blur=0.1,
            flip=0.5,
            vertical_flip=0.5,
            quarter_turns=1.0,
        )
    ),
    # Weak distortions beat strong ones (MESSIDOR-2 and five other sets, arXiv 2501.02451). The optic disc lies beside
    # the macula, never above it: no quarter turns; mirrored, it is the other eye. Blur would wipe out microaneurysms.
    "fundus": _both(
        ViewSpec(
            crop=_MOST_OF_IT,
            jitter=Jitter(p=0.8, brightness=0.2, contrast=0.2, saturation=0.1, hue=0.01),
            flip=0.5,
            vertical_flip=0.5,
        )
    ),
    # Tissue has no upright, and turning it helps (PathDino, CVPR 2024). The size of nuclei is a finding, so
    # magnification changes little (arXiv 2405.01688 goes without a resized crop). Laboratories stain differently, so
    # colour is jittered (arXiv 1902.06543).
    "histology": _both(
        ViewSpec(
            crop=_MOST_OF_IT,
            jitter=Jitter(p=0.8, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.05),
            blur=0.1,
            flip=0.5,
            vertical_flip=0.5,
            quarter_turns=1.0,
        )
    ),
    # MoCo-CXR (arXiv 2010.05352): a flip and turns by 10 degrees; no blur, no small crops, which may remove the
    # finding.
    "radiograph": _both(
        ViewSpec(
            crop=_MOST_OF_IT,
            affine=Affine(degrees=10.0, scale=(1.0, 1.0)),
            jitter=Jitter(p=0.8, brightness=0.2, contrast=0.2),
            flip=0.5,
        )
    ),
    # Of the lung, crops serve local findings, and distortions that keep the whole picture global ones (arXiv
    # 2504.07904): large crops, then. The probe is at the top and shadows fall downwards: no vertical flip and no turns.
    "ultrasound": _both(
        ViewSpec(
            crop=_MOST_OF_IT,
            jitter=Jitter(p=0.8, brightness=0.2, contrast=0.2),
            blur=0.1,
            flip=0.5,
        )
    ),
}

PLAIN = Preset(puzzle=ViewSpec(), anchor=ViewSpec())
"""The whole image, resized and normalised, nothing else: what evaluation sees."""
