"""The report of `beyond_batchnorm` as data: its sections, and in each the claims and what decides them.

Texts are templates. They know the `size` of the preset, the modules `claims` and `further` with the bounds that
decide, the networks `residual`, `deep` and `followed`, and a claim's own `network` and `normalizer`, in words.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from experiments.report import names
from experiments.report.findings import Finding, judge
from experiments.studies.beyond_batchnorm import claims, figures, further, tables, verdicts
from experiments.studies.beyond_batchnorm.results import Results
from experiments.studies.beyond_batchnorm.verdicts import Decision

SOURCE = "Lubana et al. 2021, arXiv 2106.05956"


@dataclasses.dataclass(frozen=True)
class Claim:
    """One sentence that can be true or false.

    Attributes:
      label: a short name for it.
      text: what the paper says.
      decide: from the results to what they say of it; of one network, or of a normalizer in one, where `each` is
        given.
      note: what would refute or show it.
      each: the field of the size that lists what it is claimed of, one finding for each; empty for all together.
      source: who makes it; empty for a question of ours.
      headline: whether the table of all studies in the README names it.
    """

    label: str
    text: str
    decide: Callable[..., Decision | None]
    note: str = ""
    each: str = ""
    source: str = SOURCE
    headline: bool = False

    def findings(self, results: Results) -> list[Finding]:
        """What was found of it."""
        items = getattr(results.size, self.each) if self.each else [()]
        return [self._finding(results, *([item] if isinstance(item, str) else item)) for item in items]

    def _finding(self, results: Results, *which: str) -> Finding:
        label, text, note = (_fill(part, results, *which) for part in (self.label, self.text, self.note))
        decision = self.decide(results, *which)
        if decision is None:
            decision, note = Decision(None, "not measured"), "not measured"
        return Finding(
            claim=text,
            source=self.source,
            measured=decision.measured,
            interval=None,
            verdict=judge(decision.holds),
            note="; ".join(filter(None, (decision.note, note))),
            label=label,
            question="The paper's claims" if self.source else "Beyond the paper",
            headline=self.headline,
        )


@dataclasses.dataclass(frozen=True)
class Section:
    """A part of the report.

    Attributes:
      title: its heading.
      claims: that it is about.
      parts: paragraphs and tables, in their order.
      figures: each writes a file into a folder and returns the Markdown that shows it, empty where nothing was
        measured.
    """

    title: str
    claims: Sequence[Claim]
    parts: Sequence[str | Callable[[Results], str]]
    figures: Sequence[Callable[[Results, Path], str]]

    def describe(self, results: Results, folder: Path) -> str:
        """The section in Markdown."""
        parts = [_fill(part, results) if isinstance(part, str) else part(results) for part in self.parts]
        shown = [draw(results, folder) for draw in self.figures]
        return "\n\n".join(filter(None, (f"### {_fill(self.title, results)}", *parts, *shown)))


def _fill(template: str, results: Results, network: str = "", normalizer: str = "") -> str:
    size = results.size
    return template.format(
        size=size,
        claims=claims,
        further=further,
        residual=names.model(size.residual),
        deep=names.model(size.deep),
        followed=names.model(size.followed),
        network=network and names.model(network),
        normalizer=normalizer and names.normalizer(normalizer),
    )


SECTIONS = (
    Section(
        "Claim 1: activation normalizers ({residual})",
        claims=[
            Claim(
                "claim 1",
                "Activation normalizers let the variance grow linearly at most",
                verdicts.activation_growth,
                "would be refuted by a normalizer whose variance an exponential fits better",
                headline=True,
            )
        ],
        parts=[
            """\
Fits to the blocks of each stage, both by least squares on the variance itself; means over stages and seeds. A
variance that grows by less than {claims.NO_GROWTH} per block does not grow; otherwise the better fit decides.""",
            tables.activation_growth,
        ],
        figures=[figures.draw_activation_growth],
    ),
    Section(
        "Claim 2: parametric normalizers ({residual})",
        claims=[
            Claim(
                "claim 2",
                "Parametric normalizers let the variance grow exponentially in standard blocks",
                partial(verdicts.parametric_growth, digits=2),
                "predicted x 2; would be refuted by growth below {claims.EXPLODES}",
            ),
            Claim(
                "figure 3 b",
                "SkipInit stops the growth under scaled weight standardization alone",
                partial(verdicts.parametric_growth, block=":skip_init"),
                "would be refuted by growth above {claims.STABLE}",
            ),
            # The caption of Figure 3 c as printed, and as the authors' code has it.
            Claim(
                "figure 3 c as printed",
                "The non-linearity on the branch, without SkipInit, stops the growth under both",
                partial(verdicts.parametric_growth, block=":nonlinearity_on_residual"),
                "would be refuted by growth above {claims.STABLE}",
            ),
            Claim(
                "figure 3 c as in the code",
                "The non-linearity on the branch, with SkipInit, stops the growth under both",
                partial(verdicts.parametric_growth, block=":skip_init:nonlinearity_on_residual"),
                "would be refuted by growth above {claims.STABLE}",
            ),
        ],
        parts=[
            """\
Exponential fits to the blocks of each stage, mean over stages and seeds. A block that grows by more than
{claims.EXPLODES} explodes, one below {claims.STABLE} does not. The claim's proof also gives 2 for the non-linearity
on the residual branch, whose branch keeps the variance as well; the authors' code can have SkipInit there: "both".\
""",
            tables.parametric_growth,
        ],
        figures=[figures.draw_parametric_growth],
    ),
    Section(
        "Claim 3: group size",
        claims=[
            Claim(
                "claim 3 as a line",
                "The stable rank is a line in sqrt(width / group size)",
                verdicts.rank_is_a_line,
                "would be refuted where the seeds' own errors reject the line (chi-squared, 5 %)",
                headline=True,
            ),
            Claim(
                "claim 3 as a bound",
                "The stable rank grows at least as sqrt(width / group size)",
                verdicts.rank_is_bounded,
                "would be refuted by a best exponent below 0.5",
            ),
            Claim(
                "figure 6, {network}",
                "Activations are more alike the larger the group: {network}",
                verdicts.similarity_rises,
                "would be refuted by a rank correlation of 0.8 or less",
                each="grouped",
            ),
        ],
        parts=[
            """\
Stable rank before the linear layer of 30 layers of width 64 with Gaussian images of {size.gaussian_size} x
{size.gaussian_size} pixels, mean ± deviation over seeds; cosine similarity before the linear layer on CIFAR-100.""",
            tables.group_sizes,
            """\
Fits a + b (width / group size)^exponent to the means. R^2 is above {claims.GOOD_FIT} for every exponent here, so that
it could refute none; the seeds' own errors can (chi-squared with two degrees of freedom fewer than group sizes).""",
            tables.exponents,
        ],
        figures=[figures.draw_rank_and_similarity],
    ),
    Section(
        "Claim 4: gradient explosion",
        claims=[
            Claim(
                "claim 4 with figure 8",
                "Early gradients explode in the order InstanceNorm, BatchNorm, GroupNorm, LayerNorm",
                verdicts.explosion_order,
                "would be refuted by one network in which the means over seeds are in another order",
            )
        ],
        parts=[
            """\
Norm of the loss's gradient by the convolutions' outputs: geometric mean over the first quarter of the convolutions
and over seeds, and in how many seeds each inequality holds.""",
            tables.explosions,
            """\
The arithmetic-harmonic inequality on the pre-activations measured with BatchNorm: mean of 1 / variance over images
and channels ("instance"), groups, or channels of the batch; "harmonic" is 1 over the mean of the images' variances,
which the proof takes for 1 over the batch's variance. Share of layers and seeds that meet it, and geometric mean of
the ratio.""",
            tables.inequalities,
        ],
        figures=[figures.draw_explosion],
    ),
    Section(
        "Figures 5, 7 and 9",
        claims=[
            Claim(
                "figure 5",
                "Similarity at initialisation predicts the speed of training: {network}",
                verdicts.speed,
                "would be shown by both correlations significant with InstanceNorm and without, refuted by none",
                each="trained",
            ),
            Claim(
                "figure 7",
                "Gradient norms follow the inverse product of the deviations ahead in the first {size.first_steps} "
                "steps: {followed}",
                verdicts.first_steps,
                "would be refuted by a layer below 0.6",
            ),
            Claim(
                "figure 9",
                "A larger group raises similarity and lowers the gradient's growth: {deep}",
                verdicts.tradeoff,
                "the paper takes similarity for slowness; refuted by a rank correlation within 0.8 of 0",
            ),
        ],
        parts=[],
        figures=[figures.draw_speed, figures.draw_first_steps, figures.draw_tradeoff],
    ),
    Section(
        "Figures 10 and 15, and the batch size",
        claims=[
            Claim(
                "figure 10",
                "Most normalizers keep the variance from exploding and vanishing without shortcuts: {deep}",
                verdicts.layer_growth,
                "would be refuted by half of them or more outside {further.VANISHES} to {further.EXPLODES}",
            ),
            Claim(
                "figure 15",
                "LayerNorm's activations are the most alike",
                verdicts.most_alike,
                "would be refuted by one network in which another normalizer's are more alike",
            ),
            Claim(
                "batch size",
                "The growth of gradients per layer does not depend on the batch size",
                verdicts.batch_size,
                "would be refuted by a change of {further.SAME_GROWTH:.0%}",
                source="",
            ),
        ],
        parts=[
            "Figure 10, {deep}; the paper's proof of a pre-activation deviation is sqrt((pi - 1) / pi) = "
            "{further.PREDICTED_DEVIATION:.3f}:",
            tables.layer_growth,
            "Figure 15, cosine similarity before the linear layer, means over seeds:",
            tables.similarity,
            "Gradients by batch size:",
            tables.batch_sizes,
        ],
        figures=[],
    ),
    Section(
        "Beyond the paper: ZNorm and GAN behind the normalizers that fail",
        claims=[
            Claim(
                "rescue of {normalizer}",
                "ZNorm or GAN rescues {normalizer} in {network}",
                verdicts.rescue,
                "would be shown by half-way from guessing to BatchNorm",
                each="rescued",
                source="",
            ),
            Claim(
                "sizes of gradients",
                "ZNorm gives every layer's gradient the same size",
                verdicts.same_sizes,
                source="",
            ),
        ],
        parts=[
            tables.rescues,
            tables.rescue_rates,
            "Deviation over layers of log10 of the root mean square of each kernel's gradient at initialisation:",
            tables.spreads,
        ],
        figures=[figures.draw_optimizer_input],
    ),
)
