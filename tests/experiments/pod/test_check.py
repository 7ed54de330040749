"""A pod on paper: what is read from a program, what follows from the datasheet, and a real compilation."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import metajax
from experiments.fewshot.driver import build
from experiments.flags.plan import resolve
from experiments.flags.settings import TrainingError, UsageError
from experiments.pod import check as pod_check
from experiments.pod import chips, hlo
from experiments.pod import report as pod_report
from experiments.pod.chips import Topology, collective_seconds, of_chips, topology
from experiments.pod.hlo import Collective
from experiments.setup.experiment import Setup
from helpers.driver_runs import drive, run
from metajax.trees import size

MIB = 2**20


# What the datasheet says.


def test_the_names_of_slices():
    assert topology("v5e:8x16") == Topology("v5e", (8, 16))
    several = topology("v5p:4x4x8", slices=3)
    assert (several.chips, several.name, str(several)) == (384, "v5p:4x4x8", "3 x v5p:4x4x8")
    for generation, chip in chips.CHIPS.items():
        for shape in chip.slices:
            name = Topology(generation, shape).name
            assert topology(name).shape == shape


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("v5:8x8", "does not start with a known TPU; did you mean v5"),
        ("h100", "does not start with a known TPU; use one of v4, v5e, v5p, v6e."),
        ("v5e:16x17", "not a slice of v5e; did you mean v5e:16x16"),
        ("v5e:2x2x2", "not a slice of v5e; did you mean v5e:2x2"),
        ("v5e", "not a slice of v5e"),
    ],
)
def test_a_name_that_is_none(name, says):
    with pytest.raises(UsageError, match=f"--topology={name} .*{says}"):
        topology(name)


def test_the_slice_of_so_many_chips():
    assert of_chips("v5e", 1) == Topology("v5e", (1, 1))
    assert of_chips("v5e", 64) == Topology("v5e", (8, 8))
    assert of_chips("v5e", 1024) == Topology("v5e", (16, 16), 4)
    assert of_chips("v5p", 1024) == Topology("v5p", (8, 8, 16))
    assert of_chips("v5e", 7) is None
    assert of_chips("v5e", 300) is None


@pytest.mark.parametrize(
    ("name", "slices", "seconds"),
    [
        # 4 links of 50 GB/s to the neighbours; 8 + 8 hops to the farthest chip, there and back.
        ("v5e:16x16", 1, 2 * 255 / 256 * 1e6 / 200e9 + 2 * 16e-6),
        # No rings: 2 links, and 7 + 7 hops.
        ("v5e:8x8", 1, 2 * 63 / 64 * 1e6 / 100e9 + 2 * 14e-6),
        # One ring: 3 links, and 7 + 8 hops.
        ("v5e:8x16", 1, 2 * 127 / 128 * 1e6 / 150e9 + 2 * 15e-6),
        ("v5e:1x1", 1, 0.0),
        # Parts of a cube have no rings, cubes have three.
        ("v5p:2x4x4", 1, 2 * 31 / 32 * 1e6 / 300e9 + 2 * 7e-6),
        ("v5p:4x4x8", 1, 2 * 127 / 128 * 1e6 / 600e9 + 2 * 8e-6),
        # Each chip's 256th part over a network of 25 Gb/s.
        (
            "v5e:16x16",
            4,
            2 * 255 / 256 * 1e6 / 200e9 + 2 * 16e-6 + 2 * 3 / 4 * 1e6 / 256 / 3.125e9,
        ),
    ],
)
def test_the_time_of_an_average(name, slices, seconds):
    where = topology(name, slices=slices)
    found = collective_seconds("all-reduce", 1e6, where, group=where.chips)
    assert found == pytest.approx(seconds, rel=1e-12)


def test_gathering_among_few_passes_once():
    found = collective_seconds("all-gather", 1e6, topology("v5e:16x16"), group=4)
    assert found == pytest.approx(3 / 4 * 1e6 / 200e9, rel=1e-12)


# What a program says.

HANDMADE = hlo.parse(Path(__file__).with_name("step.hlo").read_text())


def test_what_a_program_exchanges():
    assert hlo.collectives(HANDMADE) == [
        Collective("all-reduce", 8 * 100 * 4 + 16 * 2, 2, 128, 1, "jit(step)/psum"),
        Collective("all-gather", 4 * 8 * 128 * 4, 1, 4, 1, "jit(step)/all_gather"),
        Collective("collective-permute", 8 * 128 * 4, 1, 0, 7, "jit(step)/while/ppermute"),
        Collective("all-gather", 8 * 128 * 2, 1, 4, 1, "jit(step)/parameters"),
    ]


def test_what_a_program_moves():
    tile = 8 * 128 * 4  # what [8, 100] fills too
    moved = {
        "all-reduce-start": tile,
        "slice-start": 2 * tile,
        "copy-start": tile,
        "collective-permute": 7 * tile,
        "fusion": 7 * 2 * tile,  # of the stack only the row that is written
    }
    assert hlo.memory_traffic(HANDMADE) == sum(moved.values())


def compiled(function, *shapes):
    """The program of a function of arrays divided over four devices."""
    mesh = metajax.task_mesh()
    divided = NamedSharding(mesh, P("tasks"))
    spread = jax.shard_map(
        function, mesh=mesh, in_specs=P("tasks"), out_specs=P("tasks"), check_vma=False
    )
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32, sharding=divided) for shape in shapes]
    return hlo.parse(jax.jit(spread).lower(*arguments).compile().as_text())


def facts(program):
    return [(one.kind, one.num_bytes, one.group, one.times) for one in hlo.collectives(program)]


def test_a_compiled_average_and_its_gathered_parts():
    def function(x, y):
        mean = jax.lax.pmean(x, "tasks")
        return mean + jax.lax.all_gather(y, "tasks").sum()

    program = compiled(function, (4, 100), (8, 3))
    assert sorted(facts(program)) == [("all-gather", 8 * 3 * 4, 4, 1), ("all-reduce", 400, 4, 1)]


def test_a_compiled_loop_counts_its_turns():
    def function(x):
        return jax.lax.scan(lambda x, _: (jnp.sin(jax.lax.pmean(x, "tasks")), None), x, length=5)[0]

    assert facts(compiled(function, (4, 100))) == [("all-reduce", 400, 4, 5)]


@pytest.mark.parametrize(
    "learner, shards",
    [*((name, 1) for name in ("maml", "anil", "protonet", "recurrent", "meta_lstm")), ("maml", 2)],
)
def test_a_training_step_averages_once(learner, shards, pictures):
    settings = pod_check.PodSettings(
        learner=learner,
        dataset="folder",
        data_dir=str(pictures),
        model="mlp",
        ways=3,
        queries=2,
        test_queries=3,
        meta_batch=4,
    )
    mesh = metajax.task_mesh(shards=shards)
    setup = Setup(build(settings), resolve(settings), mesh=mesh)
    state, data = setup.shapes()
    step = jax.jit(setup.meta_step(), donate_argnums=0)
    program = hlo.parse(step.lower(state, data).compile().as_text())
    averaged = 4 * (size(state.meta) + 2)  # two metrics
    if shards == 1:
        assert facts(program) == [("all-reduce", averaged, 4, 1)]
    measured = report(
        topology=Topology("v5e", (2, 2)),
        shards=shards,
        collectives=hlo.collectives(program),
        averaged=averaged + 8,  # the norm, and whether it was finite
    )
    assert pod_report.unexpected(measured) == []


# What follows.


def report(**changes):
    average = Collective("all-reduce", MIB, 9, 256, 1, "")
    usual = pod_report.Report(
        topology=Topology("v5e", (16, 16)),
        num_tasks=4096,
        shards=1,
        peak=2**30,
        operations=int(256 * 197e9),  # a millisecond of each chip
        traffic=int(2 * 819e6),  # two
        collectives=[average],
        averaged=MIB,
    )
    return usual._replace(**changes)


def test_a_step_is_the_slower_of_two_and_the_exchange():
    measured = report()
    step = pod_report.predict(measured, measured.topology)
    exchange = 2 * 255 / 256 * MIB / 200e9 + 32e-6
    assert step == pytest.approx((1e-3, 2e-3, exchange))
    assert step.seconds == pytest.approx(2e-3 + exchange)
    alone = pod_report.predict(measured, of_chips("v5e", 1))
    assert alone.seconds == pytest.approx(2e-3)
    several = pod_report.predict(measured, of_chips("v5e", 1024))
    assert several.exchange == pytest.approx(exchange + 2 * 3 / 4 * MIB / 256 / 3.125e9)


def test_the_table_keeps_the_tasks_of_a_chip():
    rows = [line.split() for line in pod_report.scaling_table(report()).splitlines()]
    assert [row[0] for row in rows] == ["chips", "1", "8", "64", "256", "1,024"]
    assert rows[1][1:4] == ["v5e:1x1", "16", "2"] and rows[1][-1] == "predicted"
    assert rows[4][1:3] == ["v5e:16x16", "4,096"] and rows[4][-1] == "compiled"
    assert rows[5][1:4] == ["4", "x", "v5e:16x16"] and rows[5][4] == "16,384"
    exchange = 2 * 255 / 256 * MIB / 200e9 + 32e-6
    assert rows[4][-2] == f"{2e-3 / (2e-3 + exchange):.1%}"


def test_what_slices_exchange_is_as_compiled_and_predicted_as_one_average():
    messages = [
        Collective("all-reduce", MIB, 1, 256, 1, ""),
        Collective("all-reduce between slices", MIB, 1, 0, 1, ""),
    ]
    measured = report(
        topology=Topology("v5e", (16, 16), 4), collectives=messages, operations=1024 * 197e9
    )
    assert pod_report.unexpected(measured) == []
    inside = 2 * 255 / 256 * MIB / 200e9 + 32e-6
    assert pod_report.predict(measured, measured.topology) == pytest.approx(
        (1e-3, 2e-3, inside + 2 * 3 / 4 * MIB / 3.125e9)
    )
    assert pod_report.predict(measured, of_chips("v5e", 256)).exchange == pytest.approx(inside)


def test_parameters_divided_keep_their_group():
    gathered = Collective("all-gather", MIB, 1, 4, 1, "")
    over_others = Collective("all-reduce", MIB // 4, 1, 64, 1, "")
    measured = report(shards=4, collectives=[gathered, over_others])
    assert pod_report.unexpected(measured) == []
    exchange = 3 / 4 * MIB / 100e9 + 2 * 15 / 16 * MIB / 4 / 100e9
    assert pod_report.predict(measured, of_chips("v5e", 64)).exchange == pytest.approx(exchange)
    rings = 3 / 4 * MIB / 200e9 + 2 * 63 / 64 * MIB / 4 / 200e9
    between = 2 * 3 / 4 * MIB / 4 / 64 / 3.125e9
    several = pod_report.predict(measured, of_chips("v5e", 1024)).exchange
    assert several == pytest.approx(rings + between)
    numbers = [line.split()[0] for line in pod_report.scaling_table(measured).splitlines()]
    assert numbers == ["chips", "8", "64", "256", "1,024"], "one chip holds no fourth of them"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {
                "collectives": [
                    *report().collectives,
                    Collective("all-gather", 512, 2, 256, 3, "vmap/query"),
                ]
            },
            "all-gather of 512 bytes of 2 arrays over 256 chips, 3 times, from vmap/query: not expected.",
        ),
        (
            {"collectives": [Collective("all-reduce", MIB, 1, 256, None, "")]},
            "all-reduce of 1.0 MiB over 256 chips, in a loop: not expected in a loop.",
        ),
        (
            {"collectives": [Collective("all-reduce", MIB // 2, 1, 256, 1, "")] * 2},
            "all-reduce: 2 times per step, not once.",
        ),
        ({"collectives": []}, "all-reduce: 0 times per step, not once."),
        (
            {"averaged": MIB // 2},
            "all-reduce of 1.0 MiB per step: more than the 512.0 KiB of the meta-gradient and metrics.",
        ),
        (
            {"shards": 4, "collectives": [Collective("all-gather", MIB, 1, 256, 1, "")]},
            "all-gather of 1.0 MiB over 256 chips: not expected.",
        ),
        (
            {"peak": 17 * 2**30},
            "The program does not fit the 16.0 GiB of a chip of v5e: it takes 17.0 GiB. Use a smaller",
        ),
    ],
)
def test_what_is_wrong_is_named(changes, says):
    problems = pod_report.verdict(report(**changes))
    assert len(problems) == 1 and problems[0].startswith(says)


def test_what_the_compiler_finds_too_large_is_one_line():
    class TooLarge:
        def compile(self):
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Ran out of memory on HBM: 41G exceeds\n 15.75G. See https://openxla.org."
            )

    says = (
        r"fit the 16.0 GiB of a chip of v5e: RESOURCE_EXHAUSTED: .* exceeds 15.75G\. Use a smaller"
    )
    with pytest.raises(TrainingError, match=says):
        pod_check._compile(TooLarge(), Topology("v5e", (2, 2)))


def test_what_is_as_it_should_be():
    assert pod_report.verdict(report()) == []
    assert pod_report.verdict(report(topology=Topology("v5e", (1, 1)), collectives=[])) == []


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ("--topology=v5e:16x17", "did you mean v5e:16x16"),
        ("--meta_batch=100", "--meta_batch=100 does not divide over the 256 chips of v5e:16x16"),
        ("--parameter_shards=3", "does not divide the 256 chips of a slice"),
        (
            "--topology=v4:4x4x4 --slices=2",
            "--slices=2: the rate of the network between slices of v4",
        ),
        ("--memory_budget=8GiB", "--memory_budget is for training"),
        ("--distributed", "--distributed is for training"),
        ("--mode=evaluate --workdir=x", "--mode is for training"),
    ],
)
def test_flags_that_do_not_go_together(flags, says):
    with pytest.raises(UsageError, match=says):
        drive(*flags.split(), driver=pod_check, settings_class=pod_check.PodSettings)


def test_a_bad_flag_is_one_line():
    status, out, err = run("--topology=v5e:16x17", driver="pod_check")
    assert status == 2 and not out
    assert (
        err.startswith("error: --topology=v5e:16x17 is not a slice of v5e") and err.count("\n") == 1
    )


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_the_compiler_one_line_says_what_to_install():
    status, out, err = run("--topology=v5e:2x2", driver="pod_check")
    assert status == 1 and not out
    assert err.count("\n") == 1 and "pip install 'metajax[tpu]'" in err


@pytest.mark.parametrize(
    ("flags", "exchanged"),
    [
        ("--meta_batch=8", ["all-reduce of"]),
        (
            "--slices=2 --meta_batch=8",
            ["all-reduce of", "all-reduce between slices of", "all-gather of"],
        ),
        ("--parameter_shards=2", ["all-gather of", "all-reduce of"]),
    ],
)
def test_a_program_for_tpus(flags, exchanged, pictures):
    pytest.importorskip("libtpu")
    small = f"--dataset=folder --data_dir={pictures} --model=mlp --topology=v5e:2x2"
    small += " --ways=3 --queries=2 --test_queries=3"
    status, out, err = run(*small.split(), *flags.split(), driver="pod_check")
    assert status == 0, err
    words = " ".join(out.split())
    for kind in exchanged:
        assert kind in words
    assert "compiled\n" in out and "1,024  4 x v5e:16x16" in out
