"""Total energy of a crystal: wait for a structure, run Quantum ESPRESSO on it, keep a table of energies.

Waits for an input file of ``pw.x``, stages it and its pseudopotential in, runs it as a Slurm job, stages the
output and the XML out, appends the total energy to a table and removes the structure. ``pw.x`` must be on the
system's path; Debian's packages ``quantum-espresso`` and ``quantum-espresso-data`` bring it and silicon's
pseudopotential. Run it as it is: ``uv run dags_examples/quantum_espresso.py``.
"""

from __future__ import annotations

import sys

if __name__ == "__main__":  # Airflow reads its settings when it is imported, so this comes first
    import standalone

    sys.exit(standalone.run(__file__))

import re
import tempfile
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Param, PokeReturnValue, task

from airflow_hpc_provider.operators.files import HpcDownloadOperator, HpcUploadOperator
from airflow_hpc_provider.operators.jobs import HpcSubmitJobOperator

RESULTS = Path(tempfile.gettempdir()) / "airflow-hpc-results" / "quantum_espresso"
STRUCTURE = RESULTS / "inbox" / "silicon.in"
PSEUDOPOTENTIAL = Path("/usr/share/espresso/pseudo/Si.pz-vbc.UPF")
DIRECTORY = "{working_dir}/quantum_espresso/{{ run_id }}"

SILICON = """\
&control
  calculation = 'scf', prefix = 'crystal', outdir = './out', pseudo_dir = './'
/
&system
  ibrav = 2, celldm(1) = 10.20, nat = 2, ntyp = 1, ecutwfc = 18.0
/
&electrons
/
ATOMIC_SPECIES
 Si 28.086 Si.pz-vbc.UPF
ATOMIC_POSITIONS alat
 Si 0.00 0.00 0.00
 Si 0.25 0.25 0.25
K_POINTS automatic
 4 4 4 1 1 1
"""

with DAG(
    dag_id="quantum_espresso",
    schedule=None,
    catchup=False,
    tags=["hpc", "example"],
    params={
        "structure": Param(str(STRUCTURE), type="string", description="Input file of pw.x to wait for"),
        "pseudopotential": Param(str(PSEUDOPOTENTIAL), type="string", description="The file it names"),
        "results": Param(str(RESULTS), type="string", description="Local directory for results"),
    },
    doc_md=__doc__,
) as dag:

    @task.sensor(poke_interval=5, timeout=3600, mode="reschedule")
    def new_structure(structure: str) -> PokeReturnValue:
        """Wait until the structure is there."""
        return PokeReturnValue(is_done=Path(structure).is_file(), xcom_value=structure)

    @task
    def tabulate(outputs: list[dict[str, Any]], structure: str, results: str) -> float:
        """Append the total energy to the table."""
        output = Path(outputs[0]["local_path"]).read_text()
        found = re.search(r"^!\s+total energy\s+=\s+(-?[0-9.]+) Ry", output, re.MULTILINE)
        if not found:
            raise ValueError("the calculation did not converge: there is no total energy in its output")
        table = Path(results) / "energies.csv"
        if not table.exists():
            table.write_text("structure,total_energy_ry\n")
        with table.open("a") as stream:
            stream.write(f"{Path(structure).stem},{found[1]}\n")
        print(f"Total energy of {Path(structure).stem}: {found[1]} Ry. Table: {table}")
        return float(found[1])

    @task
    def remove_structure(structure: str) -> None:
        """Make room for the next one."""
        Path(structure).unlink()

    structure = new_structure("{{ params.structure }}")

    stage_in = HpcUploadOperator(
        task_id="stage_in",
        local_path=["{{ params.structure }}", "{{ params.pseudopotential }}"],
        remote_path=DIRECTORY + "/",
        make_parents=True,
    )

    run = HpcSubmitJobOperator(
        task_id="run",
        script=(
            "#!/bin/bash\n"
            "set -euo pipefail\n"
            "pw.x -in '{{ params.structure.rpartition('/')[2] }}' > crystal.out\n"
        ),
        working_directory=DIRECTORY,
        sbatch_options={"nodes": 1, "ntasks": 1, "time": "00:10:00"},
        env={"OMP_NUM_THREADS": "1"},
        poll_interval=10,
        deferrable=True,
    )

    stage_out = HpcDownloadOperator(
        task_id="stage_out",
        job=run.output,
        remote_path=["crystal.out", "out/crystal.xml"],
        local_path="{{ params.results }}/{{ run_id }}/",
    )

    energy = tabulate(stage_out.output, "{{ params.structure }}", "{{ params.results }}")  # type: ignore[arg-type]

    structure >> stage_in >> run
    energy >> remove_structure("{{ params.structure }}")


def demo_input() -> None:
    """When run as a script: lay silicon out, as a user would."""
    STRUCTURE.parent.mkdir(parents=True, exist_ok=True)
    STRUCTURE.write_text(SILICON)
