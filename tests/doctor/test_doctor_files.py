"""What the doctor computes without measuring: changes of a configuration file in place, and plans."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fastfgssl.config.files import load_config
from fastfgssl.doctor.diagnosis import untrained_step
from fastfgssl.doctor.overrides import apply_overrides
from fastfgssl.doctor.plan import Device, Exchange, exchanges, make_plan, parse_request
from fastfgssl.runtime.distributed import start_world
from fastfgssl.runtime.errors import UserError
from helpers.paths import ROOT

COMMENTED = """\
# mine
data:
  path: archive # on the local disk
  threads:   4  # of 8

  # the views
  views: paper
train: {epochs: 3, batch_size: 64}
output: runs/x"""


@pytest.mark.parametrize(
    ("overrides", "replaced", "by"),
    [
        ({"data.threads": 8}, "threads:   4  #", "threads:   8  #"),
        ({"data.prefetch": 3}, "  views: paper\n", "  views: paper\n  prefetch: 3\n"),
        ({"train.batch_size": 128}, "batch_size: 64", "batch_size: 128"),
        ({"train.compile": True}, "train: {", "train: {compile: true, "),
        ({"optim.lr": 0.5}, "output: runs/x", "output: runs/x\noptim.lr: 0.5\n"),
        (
            {"data.threads": 8, "data.prefetch": 4},
            COMMENTED,
            COMMENTED.replace("   4", "   8").replace("paper\n", "paper\n  prefetch: 4\n"),
        ),
    ],
)
def test_a_file_is_changed_in_these_keys_alone(tmp_path, overrides, replaced, by):
    file = tmp_path / "config.yaml"
    file.write_text(COMMENTED)
    file.chmod(0o640)
    lines = apply_overrides(file, overrides)
    assert file.read_text() == COMMENTED.replace(replaced, by)
    assert len(lines) == len(overrides)
    assert file.stat().st_mode & 0o777 == 0o640
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert apply_overrides(file, overrides) == []  # nothing is left to change


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_the_shipped_configurations_can_be_changed(path, tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(path.read_text())
    overrides = {"data.threads": 8, "data.prefetch": 3, "train.compile": True, "loss.cache": True}
    apply_overrides(file, overrides)
    assert load_config(file) == load_config(path, [f"{key}={value}" for key, value in overrides.items()])
    kept = [line for line in file.read_text().splitlines() if line not in path.read_text().splitlines()]
    assert len(kept) == 4


def test_dotted_keys_line_ends_and_links_are_kept(tmp_path):
    target = tmp_path / "target.yaml"
    target.write_bytes(b"data.path: archive\r\ndata.threads: 2\r\ntrain.steps: 1\r\n")
    (tmp_path / "link.yaml").symlink_to(target)
    assert apply_overrides(tmp_path / "link.yaml", {"data.threads": 8}) == ["data.threads: 2 -> 8"]
    apply_overrides(tmp_path / "link.yaml", {"data.prefetch": 3})
    assert target.read_bytes() == b"data.path: archive\r\ndata.threads: 8\r\ntrain.steps: 1\r\ndata.prefetch: 3\r\n"
    assert (tmp_path / "link.yaml").is_symlink()


def test_a_file_that_cannot_be_changed_in_place_stays_as_it_is(tmp_path):
    text = "data: {path: a, threads: &n 4, prefetch: *n}\ntrain: {steps: 1}\n"
    file = tmp_path / "config.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=r"cannot be changed in place; set data\.threads"):
        apply_overrides(file, {"data.threads": 8})
    assert file.read_text() == text
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_file_that_needs_the_command_line_is_changed_in_what_is_suggested_alone(tmp_path):
    text = "data: {path: archive, threads: many}\ntrain: {batch_size: 64}\n"  # no length, and no number of threads
    file = tmp_path / "config.yaml"
    file.write_text(text)
    given = ["train.steps=5", "data.threads=1"]
    lines = apply_overrides(file, {"data.threads": 8, "train.compile": True}, given)
    assert lines == ["data.threads: many -> 8", "train.compile: not set -> true"]
    assert file.read_text() == text.replace("many", "8").replace("{batch_size", "{compile: true, batch_size")
    with pytest.raises(UserError, match=r"train.steps, train.epochs: give one"):
        apply_overrides(file, {"data.threads": 2})


def test_the_plan_is_what_a_hand_calculation_gives(make_config):
    config = make_config(model__embedding_dim=512, train__precision="bfloat16")
    device = Device(batch=200, step=1000, graph=800, decode=900, bytes_per_image=5e4, shares_cores=False)
    updates = [Exchange(gradients=40_000_000, heads=1), Exchange(gradients=60_000_000, heads=1)]
    request = parse_request(["gpus=8", "images=1e6", "epochs=10", "link=1e9"])
    lines = {line.name: line.value for line in make_plan(request, device, updates, config)}
    gradients = 2 * 7 / 8 * 100e6
    # for each of 2 heads 200 rows of two views, 512 numbers of 2 bytes, to 7 others; 4 x 512 + 1 sums added up
    embeddings = 7 * 2 * (2 * 200 * 512 * 2) + 2 * 7 / 8 * 2 * 4 * (4 * 512 + 1)
    assert lines["images/s of a GPU"] == 800
    assert lines["global batch"] == 1600
    assert lines["steps"] == 6250
    assert lines["compute of a step"] == 0.25
    assert lines["gradients of a step"] == gradients
    assert lines["embeddings of a step"] == embeddings
    assert lines["exchange of a step"] == pytest.approx((gradients + embeddings) / 1e9)
    efficiency = 0.25 / (0.25 + (gradients + embeddings) / 1e9)
    assert lines["scaling efficiency, at least"] == pytest.approx(efficiency)
    assert lines["scaling efficiency, at most"] == 1
    assert lines["time"] == pytest.approx(1e7 / (8 * 800 * efficiency) / 3600)
    assert lines["storage bandwidth"] == pytest.approx(8 * 800 * efficiency * 5e4)


def test_one_gpu_exchanges_nothing_and_shared_cores_add_up(make_config):
    device = Device(batch=12, step=300, graph=600, decode=900, bytes_per_image=1e3, shares_cores=True)
    request = parse_request(["gpus=1", "images=720", "epochs=1"])
    lines = {
        line.name: line.value for line in make_plan(request, device, [Exchange(gradients=4, heads=1)], make_config())
    }
    assert lines["sent by each GPU a step"] == 0
    assert lines["images/s of a GPU"] == pytest.approx(200)
    assert lines["scaling efficiency, at least"] == lines["scaling efficiency, at most"] == 1
    assert lines["time"] == pytest.approx(720 / 200 / 3600)


@pytest.mark.parametrize(("schedule", "heads"), [("progressive", [1, 1, 1, 1]), ("joint", [4])])
def test_an_update_exchanges_the_gradients_of_what_it_trains(make_config, schedule, heads):
    config = make_config(train__schedule=schedule)
    with start_world("cpu") as world:
        step = untrained_step(config, world)
        sent = exchanges(step.updates, config)
        short = exchanges(step.updates, replace(config, train=replace(config.train, gradient_dtype="bfloat16")))
    assert [exchange.heads for exchange in sent] == heads
    whole = 4 * sum(weight.numel() for weight in step.updates[-1].heads.parameters())
    assert (sent[-1].gradients, short[-1].gradients) == (whole, whole // 2)
    assert all(exchange.gradients < whole for exchange in sent[:-1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gpus=64", "image=5"], "did you mean 'images'?"),
        (["gpus=64", "x=5"], "it takes gpus=, images=, epochs=, link="),
        (["gpus"], "--plan 'gpus'"),
        (["gpus=6.5", "images=1", "epochs=1"], "--plan gpus = '6.5': must be an integer greater than 0"),
        (["gpus=0", "images=1", "epochs=1"], "must be an integer greater than 0"),
        (["gpus=2", "images=many", "epochs=1"], "--plan images = 'many': must be a number greater than 0"),
        (["gpus=2", "images=inf", "epochs=1"], "must be a number greater than 0"),
        (["gpus=2", "images=1", "epochs=1", "link=-1"], "--plan link = '-1'"),
        (["gpus=2", "gpus=2"], "gpus is given twice"),
        (["epochs=2"], "--plan needs gpus=... images=..., as in --plan gpus=64 images=50e6 epochs=100"),
    ],
)
def test_a_bad_plan_is_one_clear_line(words, message):
    with pytest.raises(UserError) as error:
        parse_request(words)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
