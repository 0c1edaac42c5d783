"""Pictures as files of their own: the drawings of the report, for a paper, a README or a slide."""

from collections.abc import Sequence
from pathlib import Path

from sprachbund.errors import InputError, nearest
from sprachbund.files import write_text
from sprachbund.grouping.greedy import Grouping
from sprachbund.grouping.similarity_csv import Similarity
from sprachbund.report.figures import layer_deviations
from sprachbund.report.heatmaps import similarity_heatmap
from sprachbund.report.reading import Layer
from sprachbund.report.tree import arrange


def write_similarity_svg(path: Path, similarity: Similarity, grouping: Grouping) -> None:
    """Write the similarity of the languages, ordered by group, with the tree of the languages beside it.

    A fork of the tree stands at the mean similarity of all pairs that it joins: inside a group by average linkage,
    then between the groups. A dashed fork joins groups that are more alike than the parts of one of them, and stands
    level with that one.

    Raises:
        InputError: a language of the matrix is in no group.
    """
    group_of = grouping.as_dict()
    for tag in similarity.tags:
        if tag not in group_of:
            raise InputError(f"No group has the language {tag!r} of the similarity{nearest(tag, group_of) or '.'}")
    write_text(path, similarity_heatmap(arrange(similarity, group_of)).standalone())


def write_layers_svg(path: Path, layers: Sequence[Layer]) -> None:
    """Write how far the probe moved each layer, and which got experts; `read_layers` reads them from `layers.csv`."""
    write_text(path, layer_deviations(layers).standalone())
