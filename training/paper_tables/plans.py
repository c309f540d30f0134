"""Which policies the paper's tables compare, and how each is measured: arms, rows and measurements by table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from syvla.modeling_syvla.configuration_syvla import SyVLAConfig

DECOUPLING = {"intention_decoupling": True, "decoupling_quantile": 0.05}
NO_DECOUPLING = {"intention_decoupling": False}


@dataclass(frozen=True)
class Arm:
    """One way to train a policy.

    Attributes:
        overrides: Fields of [`SyVLAConfig`].
        options: Further options of `training/finetune.py`, on top of the recipe.
        thinks: Whether the policy thinks before it acts when it is measured.
        base: Checkpoint that training starts from: "flow", or "regression" for the head that a flow checkpoint lacks.
        start: Another arm. Training starts from that arm's finished policy instead of `base`.
        rl: Options of `training/ppo.py`, on top of the recipe. An arm with `start` but without `rl` continues by imitation,
            on as many additional demonstrations as RL would collect rollouts.
    """

    overrides: Mapping[str, Any] = field(default_factory=lambda: DECOUPLING)
    options: Mapping[str, Any] = field(default_factory=dict)
    thinks: bool = True
    base: str = "flow"
    start: str | None = None
    rl: Mapping[str, Any] | None = None


def rl_arm(start: str = "all", **options: Any) -> Arm:
    """An arm that continues the policy of the arm `start` by RL with the given options."""
    return Arm({}, thinks=ARMS[start].thinks, start=start, rl=options)


def quantile_arm(percent: int) -> str:
    return f"quantile_{percent:02d}"


def queries_arm(count: int) -> str:
    return f"queries_{count:02d}"


ARMS: dict[str, Arm] = {
    "all": Arm(),
    "without_decoupling": Arm(NO_DECOUPLING),
    "without_mixed_data": Arm(options={"multimodal_share": 0.0}),
    "without_both": Arm(NO_DECOUPLING, {"multimodal_share": 0.0}),
    "unannotated": Arm(thinks=False),
    "without_thoughts": Arm(NO_DECOUPLING, {"ignore_thoughts": True}, thinks=False),
    **{quantile_arm(q): Arm({**DECOUPLING, "decoupling_quantile": q / 100}) for q in (3, 8, 10, 15, 20)},
    **{queries_arm(n): Arm(options={"num_query_tokens": n}) for n in (5, 10, 15, 25, 30)},
    "all_hidden_states": Arm(
        {**NO_DECOUPLING, "conditioning": "all_hidden_states"}, {"ignore_thoughts": True}, thinks=False
    ),
    "l1_regression": Arm(NO_DECOUPLING, {"ignore_thoughts": True}, thinks=False, base="regression"),
}
"""By name. "all" is the paper's method up to imitation: 20 queries, quantile 5%, mixed data, thoughts. "unannotated" is the
same on demonstrations that have no thoughts, as LIBERO's; the paper disables thinking for such data (appendix A)."""

ARMS |= {
    "rl_similar": rl_arm(),
    "rl_random": rl_arm(expert_mode="random"),
    "rl_none": rl_arm(expert_mode="none"),
    "rl_gae": rl_arm(expert_advantages="gae"),
    "rl_imitation": rl_arm(objective="imitation"),
    "rl_without_decoupling": rl_arm("without_decoupling"),
    "rl_without_thoughts": rl_arm("without_thoughts", use_thoughts=False),
    "more_demonstrations": Arm(start="all"),
}
"""The third stage: "rl_similar" is the paper's method; "rl_imitation", a control that it lacks, imitates the same samples."""


@dataclass(frozen=True)
class Plan:
    """How our column of one table comes about.

    Attributes:
        rows: The paper's row to our arm.
        measures: "ablation" (success on one task), "tasks" (three tasks, in domain and out of distribution), "libero",
            "benchmarks" (five VLM benchmarks), or "columns".
        columns: With "columns", the table's column to the task on which each of the arms is measured for it, after an RL
            stage on that task.
        extra_rows: Rows of ours that the paper lacks, to our arm.
        not_run: The paper's row to why it has no number here.
        notes: Printed below the table.
        also_success: Whether success on the ablation task is measured too, and printed below the table: what the other
            numbers were kept at.
    """

    rows: Mapping[str, str]
    measures: str
    extra_rows: Mapping[str, str] = field(default_factory=dict)
    not_run: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    also_success: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def arms(self) -> list[str]:
        """Every arm once, in the order of the rows."""
        return list(dict.fromkeys([*self.rows.values(), *self.extra_rows.values()]))

    @property
    def all_measures(self) -> list[str]:
        """What the arms are trained for and measured at, one after the other."""
        return list(self.columns.values()) or [self.measures]


def masked_queries(quantile: float, count: int) -> int:
    """How many of `count` query states the quantile masks in every sample (all norms different)."""
    position = quantile * (count - 1)
    return int(position) + (position > int(position)) if quantile else 0


def distinct_quantile(percent: int, count: int = SyVLAConfig().num_query_tokens) -> str:
    """Arm of a row of Table 4. Rows that mask as many states are the same run, step for step."""
    if percent == 0:
        return "without_decoupling"
    known = {5: "all", 10: quantile_arm(10), 15: quantile_arm(15), 20: quantile_arm(20)}
    same = [q for q in known if masked_queries(q / 100, count) == masked_queries(percent / 100, count)]
    return known[same[0]] if same else quantile_arm(percent)


IMITATION = "Our runs end with imitation; the paper's numbers include its RL stage."
STARTS = "imitation, where RL starts"
OTHERS = "not reimplemented"
_BASELINES = {
    "SyVLA with all hidden states (as GR00T)": "all_hidden_states",
    "SyVLA with L1 regression (as OpenVLA-OFT)": "l1_regression",
}

PLANS: dict[str, Plan] = {
    "1": Plan(
        {"SyVLA": "all"},
        "tasks",
        _BASELINES,
        notes=(
            "Our tasks are simulated: `place` stands in for folding a shirt (cloth is out of reach), `calculating` and "
            "`bagging` for Tasks 2 and 3.",
            "Out of distribution: for `place` the object lies beyond all places of the demonstrations, as the paper moves its "
            "shirt; for the others expression, phrasing and position are unseen.",
            "Rows of ours with another design are SyVLA with one part exchanged, not the named models. They learn and act "
            "without thoughts, which GR00T and OpenVLA-OFT do not have.",
            IMITATION,
        ),
    ),
    "2": Plan({"SyVLA": "all"}, "benchmarks"),
    "3": Plan(
        {
            "w/o CoT": "rl_without_thoughts",
            "w/o Intention Decoupling": "rl_without_decoupling",
            "w/o RL": "more_demonstrations",
            "w/o Expert Dataset": "rl_none",
            "w/o Similar Sample": "rl_random",
            "w/ Standard Advantage": "rl_gae",
            "SyVLA (all)": "rl_similar",
        },
        "ablation",
        {STARTS: "all", "imitation of the same similar samples, no RL": "rl_imitation"},
        notes=(
            "The row w/o RL goes on by imitation, with as many further demonstrations as RL makes rollouts, as in the paper.",
        ),
    ),
    "4": Plan(
        {f"{q}%": distinct_quantile(q) for q in (0, 3, 5, 8, 10, 15, 20)},
        "ablation",
        notes=(
            "With 20 query tokens and one threshold per sample (appendix B), 3% and 5% mask the same single state, 8% and 10% "
            "the same two: each pair is one run, so its rows show one number.",
            IMITATION,
        ),
    ),
    "5": Plan(
        {str(n): "all" if n == 20 else queries_arm(n) for n in (5, 10, 15, 20, 25, 30)},
        "ablation",
        notes=(
            "At the quantile of 5%, one state is masked for N up to 20 and two for 25 and 30.",
            IMITATION,
        ),
    ),
    "6": Plan(
        dict.fromkeys(("Fold Shirt", "Calculating", "Wrapper"), "all"),
        "tasks",
        notes=("Our tasks are `place`, `calculating` and `bagging`, in simulation, in domain.", IMITATION),
    ),
    "8": Plan(dict.fromkeys(("Spatial", "Object", "Goal", "Long"), "unannotated"), "libero"),
    "9": Plan(
        {
            "All": "all",
            "w/o Intention Decoupling": "without_decoupling",
            "w/o Mixed Data": "without_mixed_data",
            "w/o Both": "without_both",
        },
        "benchmarks",
        also_success=True,
    ),
    "10": Plan(
        {"w/o Similar Retrieval": "rl_random", "SyVLA": "rl_similar"},
        "columns",
        {STARTS: "all"},
        columns={"Task 2": "calculating", "Task 3": "bagging"},
        notes=(
            "Our tasks are `calculating` and `bagging`, in simulation, in domain; each has an RL stage of its own.",
        ),
    ),
    "11": Plan({"SyVLA": "rl_similar"}, "ablation", {STARTS: "all"}, {"Pi-RL": OTHERS, "SimpleVLA-RL": OTHERS}),
}
"""By the table's number."""
