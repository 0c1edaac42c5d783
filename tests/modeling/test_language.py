"""`generate(..., language=...)`: the group of a language, asked for by its name."""

import pytest
import torch
from families import GROUPS, dense, mixture, tokens

from sprachbund.errors import InputError
from sprachbund.modeling import expand
from sprachbund.modeling.generation import group_of_language


@pytest.mark.parametrize("language", ["zul_Latn", "zu", "zul", "Zulu"])
def test_a_language_is_known_by_its_tag_and_by_its_aliases(language: str) -> None:
    model, prompt = mixture("llama"), tokens(3, 5)
    asked = {"max_new_tokens": 4, "do_sample": False}
    named = model.generate(prompt, language=language, **asked)
    assert torch.equal(named, model.generate(prompt, group_ids=torch.tensor([2, 2, 2]), **asked))
    assert not torch.equal(named, model.generate(prompt, language="deu_Latn", **asked))
    each = model.generate(prompt, language=[language, "deu_Latn", "quc_Latn"], **asked)
    assert torch.equal(each, model.generate(prompt, group_ids=torch.tensor([2, 0, 1]), **asked))
    beams = model.generate(prompt, language=[language, "deu_Latn", "quc_Latn"], num_beams=3, **asked)
    alone = model.generate(prompt[1:2], language="deu_Latn", num_beams=3, **asked)
    assert torch.equal(beams[1:2], alone)


@pytest.mark.parametrize(
    ("language", "message"),
    [
        ("zul_Lat", "language = 'zul_Lat' is none of this model's, did you mean 'zul_Latn'?"),
        ("fra_Latn", "language = 'fra_Latn' is none of this model's; it knows zul_Latn, deu_Latn, quc_Latn, cak_Latn"),
        (["zul_Latn"], "1 languages were given for 3 sequences; give one, or one each"),
    ],
)
def test_an_unknown_language_names_the_nearest(language: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        mixture("llama").generate(tokens(3, 5), language=language)
    assert str(error.value) == message


def test_groups_without_languages() -> None:
    model = expand(dense("llama"), moe_layers=[1], num_groups=3)
    assert model.config.routing == "top_k"
    assert torch.equal(model(tokens(2, 4)).logits, dense("llama")(tokens(2, 4)).logits)
    with pytest.raises(InputError, match="this model's groups have no languages; give group_ids"):
        model.generate(tokens(3, 5), language="zul_Latn")
    with pytest.raises(ValueError, match="routing = 'prefix' needs languages, and this model's groups have none"):
        model(tokens(2, 4), routing="prefix")


def test_a_language_and_groups_are_not_both_given() -> None:
    with pytest.raises(ValueError, match="generate takes language or group_ids, not both"):
        mixture("llama").generate(tokens(3, 5), language="zul_Latn", group_ids=torch.zeros(3, dtype=torch.int64))
    assert group_of_language(mixture("llama").config, "deu_Latn") == GROUPS["deu_Latn"]
