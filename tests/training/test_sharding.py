"""The way from a whole model into shards, for every family; on one process, whose shards are whole."""

import copy
from collections.abc import Iterator

import families
import pytest
import torch
import torch.distributed as dist

from sprachbund.modeling.ffn import FAMILIES
from sprachbund.modeling.skeleton import skeleton
from sprachbund.training.sharding import fill_from_leader, gather_to_leader, into_shards

QUICK = ("llama", "bloom", "gpt2")


@pytest.fixture(scope="module")
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
@pytest.mark.parametrize("family", [pytest.param(f, marks=[] if f in QUICK else pytest.mark.long) for f in FAMILIES])
def test_a_model_in_shards_computes_what_the_whole_one_does(family: str) -> None:
    """Weights, buffers that no checkpoint has, and tied weights: what is made without memory must get all of it."""
    for whole in (families.dense(family), families.mixture(family)):
        twin = into_shards(skeleton(whole.config))
        fill_from_leader(twin, whole)
        again = copy.deepcopy(whole)
        with torch.no_grad():
            for parameter in again.parameters():
                parameter.zero_()
        gather_to_leader(twin, again)
        theirs = dict(again.named_parameters())
        assert all(torch.equal(theirs[name], parameter) for name, parameter in whole.named_parameters())
        tokens = families.tokens(2, 12)
        with torch.no_grad():
            expected, found = (model.eval()(input_ids=tokens).logits for model in (whole, twin))
        assert torch.equal(found, expected)
