"""Plans: what is computed of a large run, and how it is asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastfgssl.doctor.plan import Device, make_plan, parse_request, split_words
from fastfgssl.doctor.report import plan_lines
from fastfgssl.objectives import build_objective
from fastfgssl.runtime.collectives import Traffic
from fastfgssl.runtime.distributed import World
from fastfgssl.runtime.errors import UserError
from fastfgssl.training.traffic import StepTraffic, step_traffic


def device(**changed) -> Device:
    """200 images of 50 kB a step; two updates, each with a head of 512 numbers of two bytes."""
    losses = Traffic(gathered=2 * 2 * 200 * 512 * 2, summed=2 * 4 * (4 * 512 + 1))
    values = {"batch": 200, "step": 1000, "graph": 800, "decode": 900, "bytes_per_image": 5e4, "shares_cores": False}
    traffic = StepTraffic(Traffic(summed=100_000_000), losses)
    return Device(**values | {"updates": 2, "traffic": traffic} | changed)


def test_the_plan_is_what_a_hand_calculation_gives():
    plan = make_plan(parse_request(["gpus=8", "images=1e6", "epochs=10", "link=1e9"]), device())
    gradients = 2 * 7 / 8 * 100e6
    # for each of 2 heads 200 rows of two views, 512 numbers of 2 bytes, to 7 others; 4 x 512 + 1 sums added up
    embeddings = 7 * 2 * (2 * 200 * 512 * 2) + 2 * 7 / 8 * 2 * 4 * (4 * 512 + 1)
    assert (plan.of_one_gpu, plan.global_batch, plan.steps, plan.compute) == (800, 1600, 6250, 0.25)
    assert (plan.gradients, plan.embeddings) == pytest.approx((gradients, embeddings))
    assert plan.communication == pytest.approx((gradients + embeddings) / 1e9)
    efficiency = 0.25 / (0.25 + (gradients + embeddings) / 1e9)
    assert (plan.min_efficiency, plan.max_efficiency) == pytest.approx((efficiency, 1))
    assert plan.hours == pytest.approx(1e7 / (8 * 800 * efficiency) / 3600)
    assert plan.storage == pytest.approx(8 * 800 * efficiency * 5e4)


def test_what_is_shown_of_a_plan_are_its_numbers():
    plan = make_plan(parse_request(["gpus=8", "images=1e6", "epochs=10", "link=1e9"]), device())
    told = {line.name: line for line in plan_lines(plan)}
    assert told["gradients of a step"][1:3] == ("175 MB", "2 (W - 1) / W x 100 MB of 2 updates, W = 8 GPUs")
    assert told["compute of a step"][1:3] == ("250 ms", "200 images of a GPU / 800 images/s")
    assert told["communication of a step"].text == "181 ms"
    assert told["scaling efficiency, at least"].text == f"{plan.min_efficiency:.1%}"
    assert told["time"].value == plan.hours
    assert all(line.formula for line in told.values())


def test_one_gpu_exchanges_nothing_and_shared_cores_add_up():
    request = parse_request(["gpus=1", "images=720", "epochs=1"])
    plan = make_plan(request, device(batch=12, step=300, graph=600, shares_cores=True))
    assert plan.gradients == plan.embeddings == 0
    assert plan.of_one_gpu == pytest.approx(200)
    assert plan.min_efficiency == plan.max_efficiency == 1
    assert plan.hours == pytest.approx(720 / 200 / 3600)


@pytest.mark.parametrize(("schedule", "updates"), [("progressive", 4), ("joint", 1)])
@pytest.mark.parametrize(
    ("settings", "element", "losses"),
    [
        ({"train__precision": "float32"}, 4, 1),
        ({"train__precision": "tf32"}, 4, 1),
        ({"train__precision": "bfloat16"}, 2, 1),
        ({"train__precision": "bfloat16", "train__accumulate": 2}, 2, 2),
        # the leaves of a loss over micro-batches are float32
        ({"train__precision": "bfloat16", "train__accumulate": 2, "loss__cache": True}, 4, 1),
    ],
)
def test_an_update_exchanges_gradients_of_what_it_trains_and_its_embeddings(
    make_config, schedule, updates, settings, element, losses
):
    config = make_config(train__schedule=schedule, **settings)
    objective = build_objective(config, World.alone(torch.device("cpu")))
    assert len(objective.updates) == updates
    found = step_traffic(objective.updates, config, 12)
    short = replace(config, train=replace(config.train, gradient_dtype="bfloat16"))
    # F = 24, four heads
    assert found.losses == Traffic(gathered=4 * 2 * 12 * 24 * element, summed=losses * 4 * 4 * (4 * 24 + 1))
    parameters = sum(weight.numel() for weight in objective.model.parameters())
    assert found.gradients.summed >= 4 * parameters
    assert (found.gradients.summed == 4 * parameters) == (schedule == "joint")
    assert 2 * step_traffic(objective.updates, short, 12).gradients.summed == found.gradients.summed


def test_words_of_a_plan_and_of_the_configuration_stand_together():
    words = ["gpus=64", "data.path=archive", "images=5", "seed=1", "output=runs/x", "gpu=3"]
    assert split_words(words) == (["gpus=64", "images=5", "gpu=3"], ["data.path=archive", "seed=1", "output=runs/x"])


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
