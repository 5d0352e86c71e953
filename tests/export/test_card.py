"""What stands beside an exported file: the model card, and the exact preprocessing."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fastfgssl.archive.manifest import Archive
from fastfgssl.commands.evaluate import main as evaluate
from fastfgssl.evaluation.features import FeatureExtractor
from fastfgssl.evaluation.knn import knn_probabilities
from fastfgssl.evaluation.pretrained import load_pretrained
from fastfgssl.evaluation.scores import balanced_accuracy
from fastfgssl.evaluation.split import labelled_split
from fastfgssl.evaluation.transform import PlainTransform
from fastfgssl.export.checkpoint import export_checkpoint
from fastfgssl.export.preprocessing import torchvision_code
from fastfgssl.export.score_tables import plain, score_lines
from helpers.checkpoints import CLASSES, CLASSIFIER, save_untrained
from helpers.command import run_here
from helpers.images import files_of, gradient, gradient_16_bit


def torchvision_transform(config):
    defined: dict = {}
    exec(torchvision_code(config), defined)
    return defined["transform"]


def turned() -> Image.Image:
    image = gradient()
    image.getexif()[0x0112] = 6
    return image


IMAGES = {
    "colour": gradient,
    "gray": lambda: gradient().convert("L"),
    "gray of 16 bits": gradient_16_bit,
    "transparent": lambda: gradient().convert("RGBA"),
    "gray and transparent": lambda: gradient().convert("LA"),
    "palette": lambda: gradient().convert("P"),
    "black and white": lambda: gradient().convert("1"),
    "turned": turned,
    "of that size already": lambda: gradient(32, 32),
    "larger than that": lambda: gradient(200, 90),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_torchvision_makes_of_an_image_what_ours_does(make_config, kind):
    config = make_config(data__mean=[0.6, 0.5, 0.4], data__std=[0.2, 0.3, 0.25])
    ours = PlainTransform(32, config.data.mean, config.data.std)(IMAGES[kind]())
    found = torchvision_transform(config)(IMAGES[kind]())
    assert type(found) is torch.Tensor
    torch.testing.assert_close(found, ours, rtol=0, atol=1e-5)


def test_torchvision_takes_tensors_too(make_config):
    config = make_config()
    pixels = torch.from_numpy(np.array(gradient())).permute(2, 0, 1)
    expected = torchvision_transform(config)(gradient())
    torch.testing.assert_close(torchvision_transform(config)(pixels), expected)
    batch = torch.stack([pixels, pixels]).to(torch.uint16) * 257
    torch.testing.assert_close(torchvision_transform(config)(batch)[1], expected)


def test_scores_are_those_of_the_graph(make_config, archive_path, tmp_path):
    """Preprocessing as the card has it, and the DALI graph, within half a point of balanced accuracy."""
    model, config, *_ = load_pretrained(save_untrained(make_config(), tmp_path))
    archive = Archive.open(archive_path)
    split, labels = labelled_split(archive)
    transform, model = torchvision_transform(config), model.eval()
    files = files_of(archive_path)

    def features(ids):
        names = archive.columns(ids, ("id",))["id"]
        images = torch.stack([transform(Image.open(files[name])) for name in names])
        with torch.inference_mode():
            return model.features(images)["backbone"]

    def score(train, val):
        of_train = torch.from_numpy(labels[split.train])
        found = knn_probabilities(train, of_train, val, num_classes=len(archive.classes), device=torch.device("cpu"))
        return balanced_accuracy(labels[split.val], found.argmax(dim=1).numpy())

    extractor = FeatureExtractor(model, config, archive, torch.device("cpu"), 12)
    (_, train), (_, val) = (extractor.plain(ids) for ids in (split.train, split.val))
    of_graph, of_card = (train["backbone"][:], val["backbone"][:]), (features(split.train), features(split.val))
    assert score(*of_card) == pytest.approx(score(*of_graph), abs=0.005)
    # each image is nearest to itself, of all that are there
    nearest = torch.cdist(torch.cat(of_card), torch.cat(of_graph)).argmin(dim=1)
    assert nearest.tolist() == list(range(archive.num_samples))


def test_the_card_says_what_it_is_and_what_it_is_not(make_config, archive_path, tmp_path):
    places = {"data__cache": str(tmp_path / "cache"), "output_fallback": str(tmp_path / "other")}
    config = make_config(**CLASSIFIER, model__width=1.0, optim__lr=0.0625, **places)
    checkpoint = save_untrained(config, tmp_path / "run", step=7)
    scores = tmp_path / "scores.json"
    words = ("--checkpoint", checkpoint, "--data", archive_path, "--protocol", "knn", "--json", scores)
    assert run_here(evaluate, *words, "--quiet", "--device", "cpu") == 0
    exported = export_checkpoint(checkpoint, "torchvision", tmp_path / "classifier.pth", scores=[scores])
    card = exported.card.read_text()
    assert "| archive, by its fingerprint | digest |" in card
    assert "| steps | 7 of 12 images |" in card
    assert "optim.lr: 0.0625\n" in card
    for section in ("Use", "Training", "Scores", "Intended use", "Limits"):
        assert f"\n## {section}\n" in card
    assert "not a medical device" in card
    assert all(plain(name) in card for name in CLASSES)
    # nothing of whoever's machine it was
    assert str(tmp_path) not in card
    assert str(archive_path) not in card
    result = json.loads(scores.read_text())["results"]["backbone"]
    low, high = result["intervals"]["balanced_accuracy"]
    rows = {line.split(" | ")[0]: line for line in card.splitlines()}
    assert f"{result['balanced_accuracy']:.3g} ({low:.3g} to {high:.3g})" in rows["| balanced accuracy"]
    assert all(f"| {name}" in rows for name in ("macro AUROC", "expected calibration error"))
    assert "Shared with the images to train on: 0 groups, " in card


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("<script>x</script>", r"\<script\>x\</script\>"),
        ("![i](http://x)", r"!\[i\](http\://x)"),
        ("*a* `b` ~~c~~ $d$ &lt;", r"\*a\* \`b\` \~\~c\~\~ \$d\$ \&lt;"),
        ("_a_ head_0", r"\_a\_ head_0"),
        ("www.x.org a@x.org", r"www\.x.org a\@x.org"),
        ("a|b\\|c\r\n# d", r"a\|b\\\|c # d"),
    ],
)
def test_no_name_comes_into_the_card_as_markup(name, shown):
    assert plain(name) == shown
    scores = {"accuracy": 0.5, "by_class": {name: {"recall": 0.25}}}
    report = {"protocol": name, "split": name, "results": {name: scores}, "overlap": {"groups": name}}
    lines = "\n".join(score_lines(report))
    assert lines.count(shown) == 6
    assert name not in lines


def test_classes_are_shown_as_the_network_predicts_them():
    results = {name: {"by_class": {"a": {"recall": recall}}} for name, recall in {"all": 0.25, "sum": 0.5}.items()}
    lines = list(score_lines({"protocol": "finetuned", "results": results | {"colour": {}}}))
    assert "\nOf each class by sum:\n" in lines
    assert "| a | 0.5 |" in lines
