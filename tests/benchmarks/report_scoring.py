"""Tables of the scoring benchmarks: speed on a CPU and on GPUs, and how near the answers are."""

from typing import Any

from report_tables import table

__all__ = ["same_answers", "score_cpu", "score_gpu", "way_name"]

PRECISIONS = {"int8": "w8a8-int8", "int8 rows": "w8a8-int8", "fp8": "w8a8-fp8"}
"""Precision names of older JSON files, and their present ones."""

WAYS = {
    "recipe": "baseline",
    "bnb-int8 recipe": "baseline (bnb-int8)",
    "pipeline": "transformers pipeline, bf16",
    "bf16 single": "transformers in bf16, one sequence at a time",
    "fp32 single": "transformers in fp32, one sequence at a time",
    "calibrated packed": "w8a8-int8 calibrated, packed",
    "calibrated shared": "w8a8-int8 calibrated, shared",
}
"""Whole names of older JSON files, and what the documentation calls them."""


def way_name(way: str) -> str:
    """What the documentation calls a way of scoring: `w8a8-int8 shared` for `int8 shared`."""
    if way in WAYS:
        return WAYS[way]
    for old in sorted(PRECISIONS, key=len, reverse=True):
        if way == old or way.startswith(f"{old} "):
            return PRECISIONS[old] + way.removeprefix(old)
    return way


def score_cpu(results: list[dict[str, Any]]) -> list[str]:
    return table(
        ("way", "pairs/s, median (min to max)", "tokens/s", "mean distance from fp32", "largest"),
        (
            (
                way_name(row["way"]), with_range(row["pairs_per_second"], ".3f"),
                f"{row['tokens_per_second']:,.0f}", f"{row['mean_abs_prob']:.2g}", f"{row['max_abs_prob']:.2g}",
            )
            for row in results
        ),
    )  # fmt: skip


def with_range(speed: dict[str, float], form: str) -> str:
    """`4.05 (4.01 to 4.06)`."""
    return f"{speed['median']:{form}} ({speed['min']:{form}} to {speed['max']:{form}})"


def score_gpu(results: dict[str, Any]) -> list[str]:
    pairs = results["pairs"]
    lines = [
        f"Pairs of {pairs['tokens_of_both_orderings']:,.0f} tokens on average in both orderings "
        f"({pairs['tokens_shared']:,.0f} where they share their prompt), {pairs['cut_share']:.0%} cut; random weights."
    ]
    parts = {"speed": speeds, "ceiling": ceilings, "timeline": timeline, "memory": memory,
             "start": start_up, "scaling": scaling}  # fmt: skip
    for name, write in parts.items():
        if name in results:
            lines += ["", *write(results[name])]
    return lines


def speeds(rows: list[dict[str, Any]]) -> list[str]:
    baseline = next(
        (row["pairs_per_second"]["median"] for row in rows if way_name(row["way"]) == "baseline"), None
    )
    rows_of_ways = []
    for row in rows:
        speed = row["pairs_per_second"]
        times = f"{speed['median'] / baseline:.2f}" if baseline else ""
        filled = f"{row['fill']:.1%}" if "fill" in row else f"batches of {row['batch']}"
        tokens = f"{row['tokens_per_second']['median']:,.0f}"
        rows_of_ways.append(
            (way_name(row["way"]), with_range(speed, ".2f"), times, tokens, row["turns"], filled)
        )
    columns = (
        "way", "pairs/s, median (min to max)", "times the baseline", "tokens/s, both orderings", "repeats",
        "micro-batch filled",
    )  # fmt: skip
    return table(columns, rows_of_ways)


def ceilings(rows: list[dict[str, Any]]) -> list[str]:
    columns = (
        "precision", "TFLOP/s", "tokens/s of a micro-batch", "pairs/s, shared layout", "reached by `shared`",
    )  # fmt: skip
    return [
        "The GEMM-only ceiling: the four GEMMs of a layer, for all layers, with nothing between them:",
        "",
        *table(
            columns,
            (
                (
                    way_name(row["precision"]), f"{row['tflops']:,.0f}", f"{row['pass_tokens_per_second']:,.0f}",
                    f"{row['pairs_per_second']:.1f}", f"{row['reached']:.0%}" if row["reached"] else "",
                )
                for row in rows
            ),
        ),
    ]  # fmt: skip


def timeline(traced: dict[str, Any]) -> list[str]:
    precision = way_name(traced.get("precision", "fp8"))
    lines = [
        f"`{precision} shared` on the GPU's timeline, {traced['milliseconds']:,.0f} ms: idle {traced['idle_share']:.2%}, "
        f"at most {traced['longest_gap_ms']:.2f} ms at a time. Kernels by their share:",
        "",
        "| kernel | share | calls | median |",
        "|---|---|---|---|",
    ]
    for kernel in traced["kernels"]:
        lines.append(
            f"| `{kernel['name']}` | {kernel['share']:.1%} | {kernel['calls']} | {kernel['median_us']:,.0f} us |"
        )
    return lines


def memory(replica: dict[str, Any]) -> list[str]:
    return [
        f"One `{way_name(replica.get('precision', 'fp8'))} shared` replica: weights {replica['weights_gib']:.1f} GiB; peak "
        f"{replica['allocated_gib']:.1f} GiB in use and {replica['reserved_gib']:.1f} GiB reserved."
    ]


def start_up(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "Seconds from the start of a process, weights on local disk:",
        "",
        "| compile cache | imported | loaded | compiled | first micro-batch | second micro-batch | of which compiling | peak, loading included |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        stages = " | ".join(
            f"{row[name]:.1f}" for name in ("imported", "loaded", "compiled", "first_pass", "second_pass")
        )
        lines.append(
            f"| {row['compile_cache']} | {stages} | {row['compiling']:.1f} | {row['reserved_gib']:.1f} GiB |"
        )
    return lines


def scaling(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "The whole pipeline on Ray, parquet to parquet:",
        "",
        "| replicas | pairs/s, all at work | times one | pairs/s within replicas | with start-up |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['replicas']} | {row['steady_pairs_per_second']:.2f} | {row['times_one']:.2f} "
            f"| {row['busy_pairs_per_second']:.2f} | {row['pairs_per_second']:.2f} |"
        )
    return lines


def same_answers(results: list[dict[str, Any]]) -> list[str]:
    lines = [
        "Distances are between probabilities: from transformers in bf16, one sequence at a time; from the same in "
        "fp32; and from what the same way gives each row scored alone. The spread over batches is the largest less "
        "the smallest probability of a row in several batches.",
        "",
        "| way | mean distance | 99th percentile | largest | from fp32, mean | from alone, mean | largest "
        "| spread over batches, mean | largest | other winner | accuracy | log loss |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    columns = ("mean_abs", "p99_abs", "max_abs", "float32_mean_abs", "alone_mean_abs", "alone_max_abs",
               "batch_spread_mean", "batch_spread_max")  # fmt: skip
    for row in results:
        cells = " | ".join(f"{row[name]:.5f}" if name in row else "" for name in columns)
        lines.append(
            f"| {way_name(row['way'])} | {cells} "
            f"| {row['other_winner']:.2%} | {row['accuracy']:.4f} | {row['log_loss']:.4f} |"
        )
    return lines
