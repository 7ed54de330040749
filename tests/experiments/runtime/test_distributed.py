"""What processes of one run check and say, without another process: flags, addresses, failed collectives."""

import jax
import pytest

from experiments.conduct import _to_be_the_same
from experiments.fewshot.driver import FewshotSettings
from experiments.flags.settings import TrainingError, UsageError
from experiments.flags.training import check_together
from experiments.runtime import distributed
from experiments.setup.experiment import devices_for
from metajax.errors import DataError


def of_two_processes(**flags):
    return FewshotSettings(distributed=True, num_processes=2, **{"process_id": 1, **flags})


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1:99999", "127.0.0.1:0", "127.0.0.1:-1", "127.0.0.1", "here", ":8080", "a b:80"),
        *(
            "::1:8080",
            "[::1]",
            "[::g]:8080",
            "http://here:80",
            "here:\u0668\u0660",
            f"here:{'9' * 5000}",
        ),
    ],
)
def test_an_address_that_is_none_is_refused_with_what_would_be_one(address):
    with pytest.raises(UsageError, match="is not HOST:PORT with a port from 1 to 65,535; use one"):
        distributed.join(of_two_processes(coordinator=address))


def test_a_host_that_is_unknown_is_refused(monkeypatch):
    def getaddrinfo(*_):
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.getaddrinfo", getaddrinfo)
    with pytest.raises(UsageError, match="The host of --coordinator=nowhere:80 is unknown; use"):
        distributed.join(of_two_processes(coordinator="nowhere:80"))


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, jax.errors.JaxRuntimeError])
def test_a_collective_that_fails_says_who_is_gone_and_where_to_go_on(kind, monkeypatch):
    monkeypatch.setattr(distributed, "is_joined", lambda: True)
    monkeypatch.setattr(distributed, "_saved", 1200)
    for message, who in {
        "UNKNOWN: Gloo AllGather failed: Connection reset by peer": "Process 1",
        "tasks are unhealthy (stopped sending heartbeats):\n3\nUNAVAILABLE": "Process 3",
        "UNAVAILABLE: Either the leader task was preempted/died": "Process 0",
    }.items():
        monkeypatch.setattr(distributed, "_others", [1])
        expected = rf"^{who} is gone .*: they continue from step 1,200\.$"
        with pytest.raises(TrainingError, match=expected), distributed.watching():
            raise kind(message)
    monkeypatch.setattr(distributed, "_others", [1, 2])
    with pytest.raises(TrainingError, match=r"^Another process is gone"), distributed.watching():
        raise kind("NCCL operation failed")


@pytest.mark.parametrize("error", [UsageError("socket"), ValueError("shapes"), OSError("socket")])
def test_errors_of_this_process_stay_what_they_are(error, monkeypatch):
    monkeypatch.setattr(distributed, "is_joined", lambda: True)
    with pytest.raises(type(error)) as raised, distributed.watching():
        raise error
    assert raised.value is error


def test_an_error_here_is_said_though_another_process_is_gone_too(monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)

    def exchange(_):
        raise ValueError("Gloo failed")

    def fail():
        raise DataError("mine")

    monkeypatch.setattr(distributed, "exchange", exchange)
    with pytest.raises(DataError, match="mine"):
        distributed.in_all(fail)
    with pytest.raises(ValueError, match="Gloo"):
        distributed.in_all(lambda: None)


def test_processes_started_differently_are_refused(monkeypatch):
    facts = [_to_be_the_same(FewshotSettings(outer_lr=rate)) for rate in (0.001, 0.002)]
    monkeypatch.setattr(distributed, "exchange", lambda _: facts)
    message = r"--outer_lr is 0.001 in process 0 and 0.002 in process 1; start all"
    with pytest.raises(UsageError, match=message):
        distributed.check_same(facts[0])


@pytest.mark.parametrize(
    "flags, message",
    [
        ({"coordinator": "a:1"}, "--coordinator=a:1 needs --distributed"),
        ({"distributed": True, "num_processes": 2}, "--num_processes=2 needs --coordinator too"),
        (
            {"distributed": True, "coordinator": "a:1", "num_processes": 2, "process_id": 2},
            "--process_id=2 is too large; use 0 to 1",
        ),
    ],
)
def test_flags_of_processes_that_make_no_sense_are_refused(flags, message):
    with pytest.raises(UsageError, match=message):
        check_together(FewshotSettings(**flags))


def test_parameter_shards_that_do_not_divide_the_devices_are_refused():
    with pytest.raises(UsageError, match="--parameter_shards=3 does not divide the"):
        devices_for(16, shards=3)


def test_tasks_that_do_not_divide_over_processes_are_refused_with_the_numbers(monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    with pytest.raises(UsageError, match="--meta_batch=5 does not divide over 2 processes"):
        devices_for(5)
