"""The wire form of the shim contract: what was recorded is still read, and nothing is lost between structs and messages."""

import pytest
from banyan.shim.v1 import shim_pb2 as pb
from hypothesis import given
from hypothesis import strategies as st

from cluster_shim import contract
from cluster_shim.grpc.convert import from_message, to_message
from tests.shim.samples import FIXTURES, STRUCTS, messages


@pytest.mark.parametrize("name", sorted(messages()))
def test_what_was_recorded_is_still_read(name: str) -> None:
    expected = messages()[name]
    recorded = type(expected)()
    recorded.ParseFromString((FIXTURES / f"{name}.bin").read_bytes())
    assert recorded == expected
    if name in STRUCTS:
        value, _ = STRUCTS[name]
        assert from_message(recorded, type(value)) == value


def test_every_message_has_a_fixture() -> None:
    recorded = {type(message).DESCRIPTOR.name for message in messages().values()}
    assert recorded == set(pb.DESCRIPTOR.message_types_by_name)
    assert {path.stem for path in FIXTURES.glob("*.bin")} == set(messages())


def test_every_field_of_a_struct_has_its_field_in_the_message_and_back() -> None:
    for value, kind in STRUCTS.values():
        assert set(type(value).__struct_fields__) == {field.name for field in kind.DESCRIPTOR.fields}


TEXT = st.text(max_size=8)
COUNT = st.integers(-(2**31), 2**31 - 1)
PROBES = st.builds(contract.Probe, http_path=TEXT, tcp=st.booleans(), command=st.lists(TEXT, max_size=2).map(tuple), port=COUNT)
COMPONENTS = st.builds(
    contract.Component,
    name=TEXT,
    replicas=COUNT,
    revision=TEXT,
    model=st.none() | st.builds(contract.ModelRef, TEXT, TEXT, TEXT, TEXT),
    env=st.dictionaries(TEXT, TEXT, max_size=2),
    files=st.lists(st.builds(contract.File, TEXT, st.binary(max_size=8), st.integers(0, 0o777), st.booleans()), max_size=2).map(tuple),
    takes_socket=st.booleans(),
    liveness=st.none() | PROBES,
    readiness=st.none() | PROBES,
    grace_seconds=st.floats(allow_nan=False),
)
DESIRED = st.builds(
    contract.Desired,
    works=st.lists(
        st.builds(
            contract.Work,
            uid=TEXT,
            name=TEXT,
            namespace=TEXT,
            origin=TEXT,
            version=st.integers(0, 2**63 - 1),
            components=st.lists(COMPONENTS, max_size=2).map(tuple),
        ),
        max_size=2,
    ).map(tuple),
    removed=st.lists(TEXT, max_size=2).map(tuple),
    full=st.booleans(),
)
INSTANCES = st.builds(
    contract.Instance, id=TEXT, component=TEXT, revision=TEXT, phase=st.sampled_from(contract.Phase), ready=st.booleans(), pid=COUNT
)
NODES = st.builds(contract.Node, name=TEXT, architecture=TEXT, labels=st.dictionaries(TEXT, TEXT, max_size=2), ready=st.booleans())
OBSERVED = st.builds(
    contract.Observed,
    works=st.lists(
        st.builds(contract.ObservedWork, uid=TEXT, version=COUNT, instances=st.lists(INSTANCES, max_size=2).map(tuple)), max_size=2
    ).map(tuple),
    nodes=st.none() | st.lists(NODES, max_size=2).map(tuple),
    full=st.booleans(),
)


@given(OBSERVED, DESIRED)
def test_any_value_comes_back_as_it_went(observed: contract.Observed, desired: contract.Desired) -> None:
    assert from_message(to_message(observed, pb.Observed), contract.Observed) == observed
    assert from_message(to_message(desired, pb.Desired), contract.Desired) == desired


def test_a_phase_that_is_not_known_yet_reads_as_pending() -> None:
    message = pb.Instance(id="x", component="c", revision="r", phase="Hibernating")
    assert from_message(message, contract.Instance).phase is contract.Phase.PENDING


def test_a_number_that_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(contract.ShimError, match="Component cannot be sent"):
        to_message(contract.Component(name="c", replicas=1 << 40, revision="r"), pb.Component)
