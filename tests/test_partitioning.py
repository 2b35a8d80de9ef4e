from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.log.partitioning import SMALL_GROUP, partition_of, partitions_of


@given(keys=st.lists(st.binary(max_size=70), max_size=60), partitions=st.integers(1, 2**31 - 1))
def test_a_batch_of_keys_gets_the_partition_of_each(keys: list[bytes], partitions: int) -> None:
    assert partitions_of(keys, partitions) == [partition_of(key, partitions) for key in keys]


@given(
    keys=st.integers(0, 70).flatmap(
        lambda size: st.lists(st.binary(min_size=size, max_size=size), min_size=SMALL_GROUP, max_size=40)
    )
)
def test_many_keys_of_one_length_get_the_partition_of_each(keys: list[bytes]) -> None:
    assert partitions_of(keys, 1_000) == [partition_of(key, 1_000) for key in keys]
