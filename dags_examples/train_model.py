"""Quick start: a hyper-parameter sweep as a Slurm job array.

Stages a data set and a training script in, trains nine models as one job array, stages the metrics out,
chooses the best model, fetches it, and draws the sweep. Run it as it is:
``uv run dags_examples/train_model.py``.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # Airflow reads its settings when it is imported, so this comes first
    import standalone

    sys.exit(standalone.run(__file__))

import json
import tempfile
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Param, task

from airflow_hpc_provider.operators.files import HpcDownloadOperator, HpcUploadOperator
from airflow_hpc_provider.operators.jobs import HpcSubmitJobOperator

MODELS = 9
RESULTS = str(Path(tempfile.gettempdir()) / "airflow-hpc-results" / "train_model")

with DAG(
    dag_id="train_model",
    schedule=None,
    catchup=False,
    tags=["hpc", "example"],
    params={
        "results": Param(RESULTS, type="string", description="Local directory for data, metrics and plot")
    },
    doc_md=__doc__,
) as dag:

    @task
    def export_data(results: str) -> str:
        """Write the breast cancer data set that scikit-learn ships: 569 rows, 30 features, 2 classes."""
        from sklearn.datasets import load_breast_cancer

        data = load_breast_cancer()
        path = Path(results) / "breast_cancer.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = (",".join(map(str, [*row, label])) for row, label in zip(data.data, data.target, strict=True))
        path.write_text("\n".join(rows) + "\n")
        return str(path)

    @task
    def choose_best(metrics: list[dict[str, Any]]) -> int:
        """Print the sweep as a table and return the index of the model with the smallest loss."""
        found = [json.loads(Path(item["local_path"]).read_text()) for item in metrics]
        best = min(found, key=lambda item: item["loss"])
        print(f"{'index':>5}  {'rate':>6}  {'penalty':>7}  {'loss':>7}  {'accuracy':>8}  {'seconds':>7}")
        for item in found:
            mark = " <- best" if item is best else ""
            print(
                f"{item['index']:>5}  {item['rate']:>6}  {item['penalty']:>7}  {item['loss']:>7.4f}"
                f"  {item['accuracy']:>8.4f}  {item['seconds']:>7.2f}{mark}"
            )
        return int(best["index"])

    @task
    def draw(metrics: list[dict[str, Any]], results: str) -> str:
        """Draw the loss of every model over the epochs."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for item in metrics:
            run = json.loads(Path(item["local_path"]).read_text())
            axes.plot(
                range(1, len(run["losses"]) + 1),
                run["losses"],
                label=f"rate {run['rate']}, penalty {run['penalty']}",
            )
        axes.set(
            xlabel="epoch", ylabel="log-loss on held-out data", yscale="log", title="Sweep as a job array"
        )
        figure.legend(fontsize="small", ncols=3, loc="outside lower center")
        path = Path(results) / "sweep.png"
        figure.savefig(path, dpi=120)
        print(f"Plot: {path}")
        return str(path)

    data = export_data("{{ params.results }}")

    stage_in = HpcUploadOperator(
        task_id="stage_in",
        local_path=[data, str(Path(__file__).parent / "scripts" / "train.py")],  # type: ignore[list-item]
        remote_path="{working_dir}/train_model/{{ run_id }}/",
        make_parents=True,
    )

    sweep = HpcSubmitJobOperator(
        task_id="sweep",
        script="scripts/train.sbatch",
        working_directory="{working_dir}/train_model/{{ run_id }}",
        sbatch_options={"array": f"0-{MODELS - 1}", "ntasks": 1, "time": "00:10:00"},
        poll_interval=10,
        deferrable=True,
    )

    metrics = HpcDownloadOperator(
        task_id="metrics",
        job=sweep.output,
        remote_path=[f"metrics-{index}.json" for index in range(MODELS)],
        local_path="{{ params.results }}/",
    )

    best = choose_best(metrics.output)  # type: ignore[arg-type]

    model = HpcDownloadOperator(
        task_id="model",
        job=sweep.output,
        remote_path="model-{{ ti.xcom_pull(task_ids='choose_best') }}.json",
        local_path="{{ params.results }}/best-model.json",
    )

    stage_in >> sweep
    best >> model
    draw(metrics.output, "{{ params.results }}")  # type: ignore[arg-type]
