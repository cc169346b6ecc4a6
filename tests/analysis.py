"""An analysis made from random numbers: valid and plausible, but of no model."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import expm1
from random import Random

from brickwork.measure import results as r

FUNCTIONS = ("Coding", "Math", "Translation", "Ethics")
EDGES = [number / 50 for number in range(51)]
# Indicator, tenths of the neurons that are masked, and how late the loss rises.
MASKED: tuple[tuple[r.Indicator, Sequence[int], float], ...] = (
    ("activation", range(10), 6),
    ("magnitude", range(10), 9),
    ("random", (0, 1, 3, 5), 1),
)


def synthetic_analysis(
    layers: int = 3,
    functions: Sequence[str] = FUNCTIONS,
    *,
    seed: int = 0,
    sources: Sequence[str] = ("flan", "sharegpt"),
    heads: bool = True,
    attribution: bool = True,
) -> r.Analysis:
    """A whole document whose numbers follow the shape of the paper's.

    Args:
        layers: decoder layers, at least 1.
        functions: names of the functionalities, at least 2.
        seed: equal seeds give equal documents.
        sources: names of the data's sources; none gives no source control.
        heads: whether heads were scored and taken away.
        attribution: whether neurons were scored by attribution too.
    """
    return _Maker(layers, tuple(functions), Random(seed)).analysis(sources, heads, attribution)


@dataclass(frozen=True)
class _Maker:
    layers: int
    functions: tuple[str, ...]
    random: Random

    def analysis(self, sources: Sequence[str], heads: bool, attribution: bool) -> r.Analysis:
        return r.Analysis(
            format=1,
            brickwork="0.1.0",
            command="brickwork analyse reference --out analysis",
            seconds={"activations": 12.3, "scores": 4.5, "perturbation": 67.8},
            peak_memory=812 << 20,
            model=self.model(),
            data=self.data(len(sources)),
            settings=r.Settings(share=0.05, evaluation=40, permutations=200, resamples=300, seed=0),
            sparsity=self.sparsity(),
            functionality=r.Functionality(
                neurons=[self.scores(layer, 1024) for layer in range(self.layers)],
                heads=[self.scores(layer, 8) for layer in range(self.layers if heads else 0)],
                layers=[self.scores(layer, 1) for layer in range(self.layers)],
                sources=[self.source(s, f) for s in sources for f in self.functions],
                attribution=[self.agreement(n) for n in range(self.layers if attribution else 0)],
                attribution_instances=200 if attribution else 0,
            ),
            perturbation=self.perturbation(heads),
            overlap=self.overlap(),
            findings=self.findings(),
        )

    def interval(self, value: float, spread: float = 0.1) -> r.Interval:
        low, high = sorted(value + spread * self.random.uniform(0.5, 1) * side for side in (-1, 1))
        return r.Interval(value=value, low=low, high=high)

    def model(self) -> r.ModelFacts:
        return r.ModelFacts(
            name="brickwork/synthetic",
            family="llama",
            fingerprint="0123456789abcdef" * 4,
            parameters=21_000_000,
            hidden=256,
            neurons=[1024] * self.layers,
            heads=[8] * self.layers,
            dtype="float32",
            device="cpu",
        )

    def data(self, sources: int) -> r.DataFacts:
        facts = [
            r.FunctionFacts(
                name=name,
                localisation=100,
                evaluation=40,
                prompt_tokens=self.random.randint(4_000, 9_000),
                response_tokens=self.random.randint(300, 9_000),
            )
            for name in self.functions
        ]
        return r.DataFacts(
            name="probe instances",
            sha256="fedcba9876543210" * 4,
            functions=facts,
            longest=128,
            cut=7,
            left_out=1,
            sources=sources,
        )

    def sparsity(self) -> r.Sparsity:
        layers = []
        for layer in range(self.layers):
            steep = 2.5 + 4 * (layer + 1) / self.layers
            activation = [1 - (1 - edge) ** steep for edge in EDGES]
            magnitude = [1 - (1 - edge) ** (steep + 1) for edge in EDGES]
            layers.append(
                r.LayerSparsity(
                    layer=layer,
                    activation=activation,
                    magnitude=magnitude,
                    activation_below=activation[10],
                    magnitude_below=magnitude[10],
                )
            )
        masked = [
            self.masked(indicator, ratio / 10, power)
            for indicator, ratios, power in MASKED
            for ratio in ratios
        ]
        return r.Sparsity(edges=EDGES, layers=layers, masked=masked)

    def masked(self, indicator: r.Indicator, ratio: float, power: float) -> r.MaskedLoss:
        whole = {name: 1 + number / 4 for number, name in enumerate(self.functions)}
        more = {name: loss * 3 * ratio**power for name, loss in whole.items()}
        return r.MaskedLoss(
            indicator=indicator,
            ratio=ratio,
            losses={name: self.interval(whole[name] + more[name], 0.05) for name in whole},
            increase={name: self.interval(expm1(more[name]), 0.4 * more[name]) for name in whole},
        )

    def scores(self, layer: int, units: int) -> r.LayerScores:
        return r.LayerScores(
            layer=layer,
            units=units,
            functions={
                name: self.function(units, number / 50)
                for number, name in enumerate(self.functions)
            },
            resident=list(range(min(3, units - 1))),
        )

    def function(self, units: int, more: float) -> r.FunctionScores:
        """Scores whose null is higher by ``more``, as that of a larger functionality."""
        best = self.random.uniform(0.3, 0.95)
        many = units >= 20
        null = {"mean": 0.26, "single_95": 0.3, "per_mille": 0.31, "best": 0.34, "best_95": 0.37}
        return r.FunctionScores(
            null=r.Null(**{name: value + more for name, value in null.items()}),
            best=self.interval(best, 0.04),
            best_unit=self.random.randrange(units),
            best_p=0.005 if best > null["best_95"] + more else 0.4,
            per_mille=0.2 + 0.7 * (best - 0.2),
            mean=self.random.uniform(0.24, 0.29),
            above_null=self.random.randrange(max(units // 5, 2)),
            other_half=best - 0.05,
            split_half=self.random.uniform(0.4, 0.95) if units > 1 else None,
            split_overlap=self.random.uniform(0.3, 0.8) if many else None,
        )

    def source(self, source: str, function: str) -> r.SourceControl:
        return r.SourceControl(
            source=source,
            function=function,
            positives=20,
            negatives=60,
            within=self.random.uniform(0.3, 0.8),
            elsewhere=self.random.uniform(0.5, 0.9),
            chance=0.26,
            chance_elsewhere=0.24,
        )

    def agreement(self, layer: int) -> r.Agreement:
        return r.Agreement(
            layer=layer,
            correlation={name: self.random.uniform(0.3, 0.9) for name in self.functions},
            overlap={name: self.random.uniform(0.1, 0.6) for name in self.functions},
        )

    def perturbation(self, heads: bool) -> r.Perturbation:
        base = {
            name: r.BaseLoss(response=self.interval(1.4), whole=self.interval(2.1))
            for name in self.functions
        }
        ablations = [self.ablation("neurons", "zero"), self.ablation("neurons", "mean")]
        if heads:
            ablations.append(self.ablation("heads", "zero"))
        return r.Perturbation(base=base, ablations=[*ablations, self.skips()])

    def ablation(self, units: r.Units, method: r.Method) -> r.Ablation:
        removed: list[tuple[r.RowKind, str]] = [("function", name) for name in self.functions]
        removed += [("random", "random 1"), ("random", "random 2"), ("resident", "resident")]
        return r.Ablation(
            name=f"{units}-{method}",
            title=f"{units.capitalize()} chosen by activation, set to {method}",
            units=units,
            chosen="activation",
            method=method,
            rows=[self.row(kind, name, 51 * self.layers) for kind, name in removed],
        )

    def skips(self) -> r.Ablation:
        rows = [self.row("layer", f"layers.{layer}", 1) for layer in range(self.layers)]
        return r.Ablation(
            name="layers-skip",
            title="Each layer skipped in turn",
            units="layers",
            chosen="each",
            method="skip",
            rows=rows,
        )

    def row(self, kind: r.RowKind, removed: str, units: int) -> r.AblationRow:
        rises = {
            "own": (0.8, 4.5), "function": (-0.02, 0.4), "layer": (-0.02, 0.4),
            "random": (-0.05, 0.08), "resident": (5, 90),
        }  # fmt: skip
        increase = {
            name: self.interval(
                self.random.uniform(
                    *rises["own" if (kind, removed) == ("function", name) else kind]
                )
            )
            for name in self.functions
        }
        return r.AblationRow(
            kind=kind, removed=removed, units=units, increase=increase, whole=increase
        )

    def overlap(self) -> r.Overlap:
        size = len(self.functions)
        matrices = [self.matrix(size) for _ in range(self.layers + 1)]
        merges, newest = [], 0
        for step in range(size - 1):
            merges.append([float(newest), float(step + 1), 0.9 + 0.1 * step / size, step + 2.0])
            newest = size + step
        return r.Overlap(
            functions=list(self.functions),
            layers=matrices[1:],
            pooled=matrices[0],
            independent=0.05,
            linkage=merges,
        )

    def matrix(self, size: int) -> r.OverlapMatrix:
        values = [[1.0] * size for _ in range(size)]
        for row in range(size):
            for column in range(row):
                values[row][column] = values[column][row] = self.random.uniform(0.0, 0.1)
        return r.OverlapMatrix(
            values=values,
            null=r.Interval(value=0.02, low=0.005, high=0.04),
            null_mean=r.Interval(value=0.02, low=0.018, high=0.023),
        )

    def findings(self) -> list[r.Finding]:
        verdicts: list[r.Verdict] = ["holds", "holds in part", "does not hold", "not measured"]
        return [
            r.Finding(
                name=f"claim {number}",
                claim="Activations are sparse: a token needs few neurons.",
                verdict=verdict,
                evidence="81 % of the normalised activations lie below 0.2; a control gave 12 %.",
            )
            for number, verdict in enumerate(verdicts)
        ]
