"""What the local scheduler reads in a job script."""

import time

import pytest

from airflow_hpc_provider.devgateway.directives import (
    JobOptions,
    SbatchError,
    Submission,
    format_indices,
    parse_script,
    parse_time,
)
from airflow_hpc_provider.devgateway.launch import fill_pattern


def header(*lines):
    return parse_script("\n".join(["#!/bin/bash", *lines, "true", ""]))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5", 300),
        ("0:02", 2),
        ("1:30", 90),
        ("01:00:00", 3600),
        ("2-0", 172800),
        ("1-02:03", 93780),
        ("1-02:03:04", 93784),
        ("UNLIMITED", None),
    ],
)
def test_all_time_formats_are_known(text, seconds):
    assert parse_time(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "1:2:3:4", "-5"])
def test_a_wrong_time_is_refused(text):
    with pytest.raises(SbatchError, match="Invalid --time"):
        parse_time(text)


def test_directives_end_at_the_first_command():
    options = parse_script(
        "#!/bin/sh\n# a comment\n\n#SBATCH -J first\n##SBATCH -p nope\ntrue\n#SBATCH -J second\n"
    )
    assert (options.name, options.partition) == ("first", "")


def test_short_and_long_options_and_comments_are_understood():
    options = header(
        "#SBATCH -J 'my job'   # what it is",
        "#SBATCH --account=staff -p debug",
        "#SBATCH -n4 -c 2 --mem=1G --exclusive=user --gres=gpu:1",
        "#SBATCH --open-mode=append -o out-%j -e err",
    )
    assert options == JobOptions(
        name="my job",
        account="staff",
        partition="debug",
        ntasks=4,
        cpus_per_task=2,
        mem="1G",
        append=True,
        output="out-%j",
        error="err",
    )
    assert options.cpus == 8


def test_an_unknown_option_is_sbatchs_own_error():
    with pytest.raises(SbatchError) as caught:
        header("#SBATCH --no-such-option=1")
    assert str(caught.value).startswith("sbatch: unrecognized option '--no-such-option'\n")


@pytest.mark.parametrize("script", ["hostname\n", "", "\ufeff#!/bin/sh\n"])
def test_a_script_needs_a_shebang(script):
    with pytest.raises(SbatchError, match="does not look like a batch script"):
        parse_script(script)


def test_dos_line_breaks_are_refused():
    with pytest.raises(SbatchError, match="DOS line breaks"):
        parse_script("#!/bin/sh\r\ntrue\r\n")


@pytest.mark.parametrize(
    ("text", "indices", "limit"),
    [
        ("0-3", (0, 1, 2, 3), None),
        ("1,5,9", (1, 5, 9), None),
        ("0-10:5%1", (0, 5, 10), 1),
        ("3", (3,), None),
        ("1-2,7-8%3", (1, 2, 7, 8), 3),
    ],
)
def test_arrays_are_ranges_lists_and_steps(text, indices, limit):
    array = header(f"#SBATCH --array={text}").array
    assert (array.indices, array.limit) == (indices, limit)


@pytest.mark.parametrize("text", ["a", "1-", "3-1", "1;2", "1-2%x"])
def test_a_wrong_array_is_refused(text):
    with pytest.raises(SbatchError, match="Invalid job array specification"):
        header(f"#SBATCH --array='{text}'")


def test_the_rest_of_an_array_is_written_as_slurm_does():
    assert format_indices([2, 3, 4, 9], 2) == "[2-4,9%2]"
    assert format_indices([5], None) == "[5]"


def test_begin_and_dependencies():
    options = header("#SBATCH --begin=now+2minutes --dependency=afterok:1:2,afterany:3_4")
    assert options.begin == pytest.approx(time.time() + 120, abs=5)
    assert [(d.kind, d.job_id) for d in options.dependencies] == [
        ("afterok", "1"),
        ("afterok", "2"),
        ("afterany", "3_4"),
    ]
    with pytest.raises(SbatchError, match="Job dependency problem"):
        header("#SBATCH -d afterburstbuffer:1")


def test_fields_of_the_request_win_over_the_script():
    options = header("#SBATCH -J script -p normal -o script.out")
    merged = Submission("/", "", name="field", standard_output="field.out").over(options)
    assert (merged.name, merged.partition, merged.output) == ("field", "normal", "field.out")


@pytest.mark.parametrize(
    ("pattern", "name"),
    [("a-%j.log", "a-12.log"), ("%4a_%A", "0003_10"), ("100%%", "100%"), ("%x.%q", "job.%q"), (r"\%j", "%j")],
)
def test_file_name_patterns(pattern, name):
    assert fill_pattern(pattern, {"j": "12", "A": "10", "a": "3", "x": "job"}) == name
