"""Job scripts and options of sbatch: what users give, what sbatch reads, what the job's shell sees."""

import subprocess
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_hpc_provider.client import script
from airflow_hpc_provider.client.errors import InvalidInputError
from airflow_hpc_provider.client.script import (
    SCHEDULER_FIELDS,
    array_indices,
    check_env,
    check_job_name,
    check_script,
    directives,
    expand_pattern,
    exports_env,
    format_time,
    parse_memory,
    parse_time,
    plain_env_value,
    render_script,
    script_directives,
    slug,
)

BASH = "#!/bin/bash\n"
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40)
LINE = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=40)


def refusal(call, *args, **kwargs):
    with pytest.raises(InvalidInputError) as refused:
        call(*args, **kwargs)
    return str(refused.value)


# --- time, memory, arrays ---


@pytest.mark.parametrize(
    ("value", "limit"),
    [
        (90, timedelta(minutes=90)),
        ("90", timedelta(minutes=90)),
        (" 5:30 ", timedelta(minutes=5, seconds=30)),
        ("2:05:30", timedelta(hours=2, minutes=5, seconds=30)),
        ("1-6", timedelta(days=1, hours=6)),
        ("1-6:30", timedelta(days=1, hours=6, minutes=30)),
        ("1-06:30:15", timedelta(days=1, hours=6, minutes=30, seconds=15)),
        ("25:70:70", timedelta(hours=25, minutes=70, seconds=70)),
        (timedelta(hours=1), timedelta(hours=1)),
        (timedelta(milliseconds=1), timedelta(seconds=1)),
        (timedelta(seconds=1.5), timedelta(seconds=2)),
    ],
)
def test_a_time_is_read_as_sbatch_reads_it(value, limit):
    assert parse_time(value, "time") == limit


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (True, "True is no time"),
        (1.5, "1.5 is no time"),
        (None, "None is no time"),
        ("", "'' is no time"),
        ("2h", "'2h' is no time"),
        ("1:2:3:4", "is no time"),
        ("-5", "is no time"),
        ("\N{ARABIC-INDIC DIGIT ONE}", "is no time"),
        (0, "0 is not above zero"),
        (-5, "not above zero"),
        ("0:0:0", "not above zero"),
        (timedelta(0), "not above zero"),
        (timedelta(seconds=-1), "not above zero"),
        ("UNLIMITED", "leave it out"),
        ("infinite", "leave it out"),
        (-1, "not above zero"),
        ("999999999-0", "more than Slurm can count"),
        (10**18, "more than Slurm can count"),
        (timedelta.max, "more than Slurm can count"),
        ("9" * 5000, "is no time"),
    ],
)
def test_what_is_no_time_limit_is_refused(value, problem):
    message = refusal(parse_time, value, "time")
    assert message.startswith("time: ")
    assert problem in message


@pytest.mark.parametrize(
    ("limit", "text"),
    [
        (timedelta(seconds=1), "00:00:01"),
        (timedelta(minutes=90), "01:30:00"),
        (timedelta(days=2, hours=3), "2-03:00:00"),
        (timedelta(seconds=0.1), "00:00:01"),
    ],
)
def test_a_time_is_written_as_slurm_writes_it(limit, text):
    assert format_time(limit) == text


@given(st.timedeltas(timedelta(seconds=1), timedelta(days=20000)))
def test_a_written_time_is_read_back_rounded_up_to_a_second(limit):
    again = parse_time(format_time(limit), "time")
    assert limit <= again < limit + timedelta(seconds=1)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (512, 512 * 2**20),
        ("512", 512 * 2**20),
        ("1024K", 2**20),
        ("500M", 500 * 2**20),
        (" 4g ", 4 * 2**30),
        ("4GB", 4 * 2**30),
        ("2T", 2**41),
        (0, None),
        ("0", None),
        ("0G", None),
    ],
)
def test_memory_is_read_as_sbatch_reads_it(value, size):
    assert parse_memory(value, "mem") == size


@pytest.mark.parametrize(
    "value", ["4 GB", "4GiB", "4.5G", "G", "", "-1", 1.5, True, None, -4, "4P", "9" * 5000]
)
def test_what_is_no_memory_is_refused(value):
    message = refusal(parse_memory, value, "mem")
    assert message.startswith("mem: ")
    assert "is no amount of memory" in message


@pytest.mark.parametrize(
    ("spec", "indices"),
    [
        ("0-3", [0, 1, 2, 3]),
        ("5", [5]),
        ("0-9:3%2", [0, 3, 6, 9]),
        ("1, 3 ,5-9:2", [1, 3, 5, 7, 9]),
        ("3,1,1-3", [1, 2, 3]),
        ("[5-7%2]", [5, 6, 7]),
        ("4000000", [4_000_000]),
    ],
)
def test_the_indices_of_an_array_are_listed(spec, indices):
    assert array_indices(spec) == indices


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ("", "is no list of indices"),
        ("a", "is no list of indices"),
        ("1,", "is no list of indices"),
        ("1 2", "is no list of indices"),
        ("-3", "is no list of indices"),
        ("1-5,...", "is no list of indices"),
        ("%5", "is no list of indices"),
        ("0-9%", "is no list of indices"),
        ("5-3", "the range 5-3 holds no index"),
        ("0-9:0", "the range 0-9:0 holds no index"),
        ("0-9%0", "no element would run"),
        ("0-4000001", "index 4000001 is beyond 4000000"),
        ("0-999999999999", "is no list of indices"),
        (",".join(["0-4000000"] * 100), "more than once"),
    ],
)
def test_what_is_no_list_of_indices_is_refused_at_once(spec, problem):
    message = refusal(array_indices, spec)
    assert message.startswith("array: ")
    assert problem in message


@given(st.sets(st.integers(0, 300), min_size=1))
def test_a_list_of_indices_survives_its_specification(indices):
    spec = directives({"array": list(indices)})["array"]
    assert array_indices(spec) == sorted(indices)


@given(st.builds(range, st.integers(0, 99), st.integers(0, 99), st.sampled_from([1, 2, 7])))
def test_a_range_survives_its_specification(indices):
    if indices:
        assert array_indices(directives({"array": indices})["array"]) == sorted(indices)
    else:
        assert "holds no index" in refusal(directives, {"array": indices})


# --- options ---


@pytest.mark.parametrize(
    ("option", "value", "written"),
    [
        ("nodes", 2, {"nodes": "2"}),
        ("nodes", "2", {"nodes": "2"}),
        ("nodes", " 2-4 ", {"nodes": "2-4"}),
        ("nodes", "1,3-9:2", {"nodes": "1,3-9:2"}),
        ("ntasks_per_node", "4", {"ntasks-per-node": "4"}),
        ("ntasks-per-node", 4, {"ntasks-per-node": "4"}),
        ("cpus_per_task", "+4", {"cpus-per-task": "4"}),
        ("gpus", 4, {"gpus": "4"}),
        ("gpus_per_node", "a100:2, h100:1", {"gpus-per-node": "a100:2,h100:1"}),
        ("gres", "gpu:a100:2", {"gres": "gpu:a100:2"}),
        ("gres", ["gpu:2", "nvme:1"], {"gres": "gpu:2,nvme:1"}),
        ("core_spec", 0, {"core-spec": "0"}),
        ("nice", -5, {"nice": "-5"}),
        ("nice", True, {"nice": None}),
        ("time", 90, {"time": "01:30:00"}),
        ("time", "1-12", {"time": "1-12:00:00"}),
        ("time", timedelta(hours=36), {"time": "1-12:00:00"}),
        ("time_min", "10", {"time-min": "00:10:00"}),
        ("mem", 4000, {"mem": "4000M"}),
        ("mem", "4g", {"mem": "4G"}),
        ("mem", "0", {"mem": "0"}),
        ("mem_per_cpu", "1024K", {"mem-per-cpu": "1024K"}),
        ("tmp", "10G", {"tmp": "10G"}),
        ("array", "0-99%10", {"array": "0-99%10"}),
        ("array", " 1, 3,5-9:2", {"array": "1,3,5-9:2"}),
        ("array", "7", {"array": "7"}),
        ("array", [5, 1, 2, 3], {"array": "1-3,5"}),
        ("array", range(10), {"array": "0-9"}),
        ("array", range(0, 10, 2), {"array": "0-8:2"}),
        ("array", range(9, -1, -3), {"array": "0-9:3"}),
        ("begin", "now+1hour", {"begin": "now+1hour"}),
        ("begin", timedelta(minutes=1.5), {"begin": "now+90seconds"}),
        ("begin", timedelta(seconds=-5), {"begin": "now+0seconds"}),
        ("deadline", datetime(2033, 5, 18, 3, 33, 20, tzinfo=UTC), {"deadline": "uts2000000000"}),
        (
            "begin",
            datetime(2033, 5, 18, 5, 33, 20, tzinfo=timezone(timedelta(hours=2))),
            {"begin": "uts2000000000"},
        ),
        ("hold", True, {"hold": None}),
        ("hold", "True", {"hold": None}),
        ("hold", False, {}),
        ("hold", "false", {}),
        ("exclusive", True, {"exclusive": None}),
        ("exclusive", "user", {"exclusive": "user"}),
        ("exclusive", False, {}),
        ("kill_on_invalid_dep", True, {"kill-on-invalid-dep": "yes"}),
        ("kill_on_invalid_dep", False, {"kill-on-invalid-dep": "no"}),
        ("kill_on_invalid_dep", "no", {"kill-on-invalid-dep": "no"}),
        ("propagate", ["CORE", "STACK"], {"propagate": "CORE,STACK"}),
        ("signal", "B:USR1@120", {"signal": "B:USR1@120"}),
        ("signal", 10, {"signal": "10"}),
        ("switches", 1, {"switches": "1"}),
        ("wait_all_nodes", 1, {"wait-all-nodes": "1"}),
        ("hint", "nomultithread", {"hint": "nomultithread"}),
        ("open_mode", "append", {"open-mode": "append"}),
        ("cpu_freq", "high", {"cpu-freq": "high"}),
        ("dependency", ["afterok:1", "singleton"], {"dependency": "afterok:1,singleton"}),
        ("comment", 'a "b" \\ # é', {"comment": 'a "b" \\ # é'}),
        ("uenv", "prgenv-gnu/24.11:v1", {"uenv": "prgenv-gnu/24.11:v1"}),
        ("account", "csstaff", {"account": "csstaff"}),
        ("partition", ["a", "b"], {"partition": "a,b"}),
        ("constraint", "[rack1|rack2]*2&gpu", {"constraint": "[rack1|rack2]*2&gpu"}),
        ("constraints", "gpu", {"constraint": "gpu"}),
        ("tasks_per_node", 2, {"ntasks-per-node": "2"}),
        ("qos", None, {}),
        ("mem", None, {}),
    ],
)
def test_an_option_is_written_as_sbatch_takes_it(option, value, written):
    assert directives({option: value}) == written


@pytest.mark.parametrize(
    ("option", "value", "problem"),
    [
        ("nodes", 0, "0 is not a whole number above zero"),
        ("nodes", "4-2", "is no number of nodes"),
        ("nodes", "two", "is no number of nodes"),
        ("nodes", "", "'' is not a whole number"),
        ("nodes", True, "True is not a whole number"),
        ("ntasks", 1.5, "1.5 is not a whole number above zero"),
        ("ntasks", "4k", "'4k' is not a whole number"),
        ("ntasks", "9" * 5000, "is not a whole number"),
        ("core_spec", -1, "is not a whole number, zero or more"),
        ("nice", "x", "is not a whole number."),
        ("gpus", "a100:x", "is no number of GPUs"),
        ("gpus", [1], "is not a whole number above zero"),
        ("time", "2h", "is no time"),
        ("mem", "4 GB", "is no amount of memory"),
        ("array", 5, "give range(5) for 5 elements, or [5]"),
        ("array", [], "holds no index"),
        ("array", range(0), "holds no index"),
        ("array", [1, "2"], "is no list of indices"),
        ("array", [-1], "is no list of indices"),
        ("array", [True], "is no list of indices"),
        ("array", 1.5, "is no list of indices"),
        ("array", range(4_000_002), "beyond 4000000"),
        ("begin", datetime(2033, 5, 18), "has no time zone"),  # noqa: DTZ001
        ("begin", 5, "5 is int. Give text"),
        ("hold", "yes", "'yes' is not True or False"),
        ("hold", 1, "1 is not True or False"),
        ("exclusive", "node", "is not True, 'user', 'mcs' or 'topo'"),
        ("exclusive", True + 1, "is not True"),
        ("kill_on_invalid_dep", "maybe", "is not 'yes' or 'no'"),
        ("signal", "USR 1", "is not a signal"),
        ("switches", "x", "is not a number of switches"),
        ("hint", "fast", "is not 'compute_bound'"),
        ("comment", "a\nb", "holds a line break"),
        ("comment", "a\tb", "holds a tab"),
        ("comment", "a\0b", "holds the character U+0000"),
        ("comment", "a\ud800", "holds the character U+D800"),
        ("comment", "a\u2028", "holds the character U+2028"),
        ("qos", "", "is empty. Leave it out, or give None"),
        ("qos", "  ", "is empty"),
        ("qos", 3, "3 is int. Give text"),
        ("gres", [], "is empty"),
        ("gres", ["gpu:1", 2], "2 is int"),
        ("account", "it's", 'holds "\'"'),
        ("partition", "a;b", "holds ';'"),
        ("constraint", "$x", "holds '$'"),
        ("foo", 1, "is no option of sbatch known here. Others can stand in the script"),
        ("ntask", 1, 'Did you mean "ntasks"?'),
        ("cpu_per_task", 1, 'Did you mean "cpus_per_task"?'),
        ("--nodes", 1, 'Did you mean "nodes"?'),
        ("N", 1, 'is a short option. Write "nodes"'),
        ("c", 1, 'Write "cpus_per_task"'),
        ("job_name", "x", "set it by the parameter job_name"),
        ("chdir", "x", "parameter working_directory"),
        ("workdir", "x", "parameter working_directory"),
        ("output", "x", "parameter stdout"),
        ("error", "x", "parameter stderr"),
        ("input", "x", "redirect the input in the script"),
        ("export", "x", "parameter env"),
        ("export_file", "x", "parameter env"),
        ("wait", True, "the task waits"),
        ("parsable", True, "the gateway runs sbatch"),
        ("test_only", True, "the gateway runs sbatch"),
        ("wrap", "x", "parameter script"),
        ("uid", 1, "user of the connection"),
        ("clusters", "x", "parameter system"),
    ],
)
def test_an_option_that_is_not_right_is_refused_by_its_name(option, value, problem):
    message = refusal(directives, {option: value})
    assert message.startswith(f'sbatch_options["{option}"]: ')
    assert problem in message


def test_the_name_of_the_parameter_is_the_callers():
    assert refusal(directives, {"nodes": 0}, "options").startswith('options["nodes"]: ')


def test_options_are_a_mapping_by_text():
    assert refusal(directives, "nodes=2").startswith("sbatch_options: is str. Give a mapping")
    assert refusal(directives, {1: 2}).startswith('sbatch_options["1"]: is no text')


def test_one_option_in_two_spellings_is_refused():
    message = refusal(directives, {"mem_per_cpu": "1G", "mem-per-cpu": "1G"})
    assert message.startswith('sbatch_options["mem-per-cpu"]: is the same option as "mem_per_cpu"')


@pytest.mark.parametrize(
    "options",
    [
        {"mem": "1G", "mem_per_cpu": "1G"},
        {"requeue": True, "no_requeue": True},
        {"exclusive": True, "oversubscribe": True},
    ],
)
def test_options_that_exclude_each_other_are_refused(options):
    first, second = options
    assert f'sbatch_options: "{first}" and "{second}" exclude each other' in refusal(directives, options)


def test_an_option_that_is_left_out_excludes_nothing():
    assert directives({"mem": "1G", "mem_per_cpu": None, "requeue": True, "no_requeue": False}) == {
        "mem": "1G",
        "requeue": None,
    }


def test_the_fields_of_the_gateway_are_options():
    assert set(SCHEDULER_FIELDS) == {"account", "partition", "reservation", "constraint"}
    assert all(directives({name: "x"}) == {name: "x"} for name in SCHEDULER_FIELDS)


def test_every_option_of_the_table_is_checked_or_points_elsewhere():
    for name, option in script._OPTIONS.items():
        message = refusal(directives, {name: object()})
        assert message.startswith(f'sbatch_options["{name}"]: ')
        assert ("cannot be set here" in message) == bool(option.elsewhere)
    assert set(script._SHORT.values()) | set(script._ALIASES.values()) <= script._OPTIONS.keys()


# --- scripts ---


def test_a_script_is_returned_with_a_line_break_at_its_end():
    assert check_script("#!/bin/bash\ntrue") == "#!/bin/bash\ntrue\n"
    assert (
        check_script("#!/usr/bin/env python3\nprint('a\\r')\n") == "#!/usr/bin/env python3\nprint('a\\r')\n"
    )
    assert check_script("#! /bin/sh") == "#! /bin/sh\n"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "is NoneType. Give the script as text"),
        (b"#!/bin/sh", "is bytes"),
        ("", "is empty"),
        (" \n", "is empty"),
        ("\ufeff#!/bin/bash\n", "byte order mark"),
        ("#!/bin/bash\r\ntrue\r\n", "line ends of Windows"),
        ("#!/bin/bash\rtrue", "line ends of Windows"),
        ("#!/bin/bash\ntrue\r", "line ends of Windows"),
        ("#!/bin/bash\n\0", "NUL"),
        ("#!/bin/bash\n\udcff", "lone surrogate U+DCFF"),
        ("echo hello", "does not start with #! and an interpreter. Let its first line"),
        ("\n#!/bin/bash\n", "does not start with #! and an interpreter after blanks or lines"),
        ("#!bash\n", "names no interpreter by an absolute path"),
        ("#!\ntrue", "names no interpreter"),
    ],
)
def test_a_script_that_slurm_refuses_is_refused_here(text, problem):
    message = refusal(check_script, text)
    assert message.startswith("script: ")
    assert problem in message


# What sbatch of Slurm 22.05 read in these lines, by its own verbose output.
@pytest.mark.parametrize(
    ("line", "options"),
    [
        ("--nodes=2", [("nodes", "2")]),
        ("--nodes 2 --hold", [("nodes", "2"), ("hold", None)]),
        ("-N 2 -n4", [("nodes", "2"), ("ntasks", "4")]),
        ("-HOs -N2", [("hold", None), ("overcommit", None), ("oversubscribe", None), ("nodes", "2")]),
        ("-J x -t 5 -p p", [("job-name", "x"), ("time", "5"), ("partition", "p")]),
        ("-A a -o o -e e", [("account", "a"), ("output", "o"), ("error", "e")]),
        (
            "-a 1 -c 2 -D /d -d s",
            [("array", "1"), ("cpus-per-task", "2"), ("chdir", "/d"), ("dependency", "s")],
        ),
        ("-C x -w n -x m -q q", [("constraint", "x"), ("nodelist", "n"), ("exclude", "m"), ("qos", "q")]),
        ("--part=x", [("partition", "x")]),
        ("--ntasks-per-n 3", [("ntasks-per-node", "3")]),
        ("--tasks-per-node=3", [("ntasks-per-node", "3")]),
        ("--cpus=4", [("cpus", "4")]),
        ("--exclusive -N 2", [("exclusive", None), ("nodes", "2")]),
        ("--exclusive=user", [("exclusive", "user")]),
        ("--nice=5", [("nice", "5")]),
        (
            '--comment="a \\"b\\" \'c\' \\\\ # d" -N 2 # -n 9',
            [("comment", "a \"b\" 'c' \\ # d"), ("nodes", "2")],
        ),
        ("--comment='x y'", [("comment", "x y")]),
        ("--comment='a\\b'", [("comment", "ab")]),
        ("--comment=a#b -N3", [("comment", "a")]),
        ("--comment=a\\ b", [("comment", "a"), ("b", None)]),
        ("--comment=a\\#b -N3", [("comment", "a#b"), ("nodes", "3")]),
        ('--licenses=""', [("licenses", "")]),
        ("--mine foo -N1", [("mine", "foo"), ("nodes", "1")]),
        ("--mine -N1", [("mine", None), ("nodes", "1")]),
        ("--nodes", [("nodes", None)]),
        ("-N", [("nodes", None)]),
        ("-Z", [("Z", None)]),
        ("hetjob", [("hetjob", None)]),
        ("- x", [("-", None), ("x", None)]),
        ("", []),
        ("# nothing", []),
        ('--comment="open', [("comment", "open")]),
        ("--comment=x\\", [("comment", "x")]),
    ],
)
def test_a_directive_is_read_as_sbatch_reads_it(line, options):
    assert script_directives(f"{BASH}#SBATCH {line}\ntrue\n") == [(name, value, 2) for name, value in options]


def test_directives_end_where_commands_begin():
    text = f"{BASH}\n# note\n#SBATCH -N2\n ##SBATCH -n1\n #SBATCH -n2\n##SBATCH -n3\n#SBATCH\t--hold\n"
    text += "  : x\n#SBATCH -n4\n"
    assert script_directives(text) == [("nodes", "2", 4), ("hold", None, 8)]


def test_a_blank_that_is_none_to_the_shell_is_a_command():
    assert script_directives(f"{BASH}\xa0\n#SBATCH -N2\n") == []


def test_options_lead_the_script():
    assert render_script(
        "#!/bin/bash -l\n\n# note\ntrue", {"nodes": "2", "hold": None, "comment": 'a "b"'}, {}
    ) == (
        '#!/bin/bash -l\n#SBATCH --nodes=2\n#SBATCH --hold\n#SBATCH --comment="a \\"b\\""\n\n# note\ntrue\n'
    )


def test_a_line_of_the_script_that_sets_the_same_option_becomes_a_comment():
    text = BASH + "#SBATCH -N 9\n#SBATCH --time=5\n#SBATCH -n 3 --part=x --hold\ntrue\n#SBATCH -N 8\n"
    assert render_script(text, {"nodes": "2", "ntasks": "4"}, {}) == (
        BASH
        + "#SBATCH --nodes=2\n#SBATCH --ntasks=4\n##SBATCH -N 9\n#SBATCH --time=5\n"
        + "##SBATCH -n 3 --part=x --hold\n#SBATCH --partition=x\n#SBATCH --hold\ntrue\n#SBATCH -N 8\n"
    )


def test_an_option_also_replaces_those_of_the_script_that_it_excludes():
    text = render_script(
        BASH + "#SBATCH --mem-per-cpu=1G\n#SBATCH --no-requeue\n", {"mem": "4G", "requeue": None}, {}
    )
    assert script_directives(text) == [("mem", "4G", 2), ("requeue", None, 3)]


def test_a_script_without_options_and_variables_stays_as_it_is():
    text = BASH + "#SBATCH -N 2\n\ntrue\n"
    assert render_script(text, {}, {}) == text


def test_a_script_of_comments_alone_keeps_its_end():
    assert render_script(BASH, {"nodes": "2"}, {"A": "1"}) == BASH + "#SBATCH --nodes=2\nexport A=1\n"


def test_variables_are_exported_before_the_first_command():
    text = BASH + "#SBATCH -N 2\n# note\n\necho hello\n"
    assert render_script(text, {}, {"A": "1", "B": "a, b"}) == (
        BASH + "#SBATCH -N 2\n# note\n\nexport A=1\nexport B='a, b'\necho hello\n"
    )


def test_options_are_refused_in_a_script_of_several_parts():
    text = BASH + "#SBATCH -N 1\n#SBATCH hetjob\n#SBATCH -N 2\n"
    message = refusal(render_script, text, {"time": "1:00:00"}, {})
    assert message.startswith("sbatch_options: cannot go with #SBATCH hetjob")
    assert render_script(text, {}, {}) == text


def test_variables_are_refused_where_no_shell_runs():
    message = refusal(render_script, "#!/usr/bin/env python3\nprint()\n", {}, {"A": "1"})
    assert message.startswith(
        "env: cannot be set: the script's interpreter (#!/usr/bin/env python3) is no shell"
    )
    assert "--nodes=2" in render_script("#!/usr/bin/env python3\nprint()\n", {"nodes": "2"}, {})


def test_a_script_is_checked_before_it_is_rendered():
    assert refusal(render_script, "true", {}, {}).startswith("script: does not start")


@pytest.mark.parametrize(
    ("shebang", "shell"),
    [
        ("#!/bin/bash", True),
        ("#!/bin/bash -l", True),
        ("#! /bin/sh -e", True),
        ("#!/usr/bin/zsh", True),
        ("#!/usr/local/bin/ksh93", True),
        ("#!/usr/bin/env bash", True),
        ("#!/usr/bin/env -S bash -e", True),
        ("#!/usr/bin/env -Sbash -e", True),
        ("#!/usr/bin/env -S A=1 bash", True),
        ("#!/usr/bin/env python3", False),
        ("#!/usr/bin/env", False),
        ("#!/usr/bin/python3", False),
        ("#!/bin/tcsh", False),
        ("#!/usr/bin/bashful", False),
        ("#!", False),
    ],
)
def test_only_a_shell_exports_variables(shebang, shell):
    assert exports_env(f"{shebang}\ntrue\n") is shell


NAMES = st.from_regex(r"T_[A-Za-z0-9_]{0,6}", fullmatch=True)
TRICKY = st.text(st.sampled_from("ab,'\"\\$`!#%;&|<>(){}[]*?~ =\n\t\r\x01\x7fé日😀\u2028"), max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(NAMES, TEXT | TRICKY, max_size=12),
    st.sampled_from(["bash", "sh"]),
    st.sampled_from(["", "#SBATCH -N 9 --hold\n", "\n# note\n"]),
)
def test_any_variable_reaches_a_real_shell_unchanged_and_the_options_lead(env, shell, header):
    # "\r\n" anywhere makes sbatch refuse the script.
    text = render_script(f"#!/bin/{shell}\n{header}exec /usr/bin/env -0\n", {"nodes": "2"}, check_env(env))
    assert "\r\n" not in text
    assert text.startswith(f"#!/bin/{shell}\n#SBATCH --nodes=2\n")
    found = [(name, value) for name, value, _ in script_directives(text)]
    assert found == [("nodes", "2")] + ([("hold", None)] if "hold" in header else [])
    done = subprocess.run([shell, "-s"], input=text.encode(), env={}, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    seen = dict(entry.split("=", 1) for entry in done.stdout.decode().split("\0")[:-1])
    assert {name: seen.get(name) for name in env} == env


@given(LINE.filter(str.strip))
def test_any_line_of_text_survives_a_directive(text):
    rendered = render_script(BASH, directives({"comment": text}), {})
    assert script_directives(rendered) == [("comment", text, 2)]


@given(st.text(st.sampled_from("#SBATCH -Nn12=\n:'\"\\é x")))
def test_any_script_keeps_its_commands(body):
    text = render_script(BASH + body, {"nodes": "2"}, {"A": "1"})
    assert script_directives(text)[0] == ("nodes", "2", 2)
    assert [name for name, _, _ in script_directives(text)].count("nodes") == 1
    assert len(text.split("\n")) >= len((BASH + body).split("\n"))


# --- environment ---


def test_variables_are_text_or_numbers():
    assert check_env({"A": "x", "_b1": 3, "C": 0.5, "EMPTY": ""}) == {
        "A": "x",
        "_b1": "3",
        "C": "0.5",
        "EMPTY": "",
    }


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("1A", "x", "is no name of a variable"),
        ("A-B", "x", "is no name of a variable"),
        ("A\n", "x", "is no name of a variable"),
        ("É", "x", "is no name of a variable"),
        ("", "x", "is no name of a variable"),
        (3, "x", "is no name of a variable"),
        ("UID", "x", "belongs to the shell"),
        ("_", "x", "belongs to the shell"),
        ("A", True, "is bool. Give text or a number. Write '1' or 'true'"),
        ("A", None, "is NoneType. Give text or a number"),
        ("A", ["x"], "is list"),
        ("A", "x\0", "holds the character U+0000"),
        ("A", "x\ud800", "holds the character U+D800"),
        ("A", "é" * 70_000, "is longer than a program can be given"),
    ],
)
def test_what_a_shell_cannot_export_is_refused(name, value, problem):
    message = refusal(check_env, {name: value})
    assert message.startswith(f'env["{name}"]: ')
    assert problem in message


def test_the_environment_is_a_mapping():
    assert refusal(check_env, ["A=1"], "variables") == (
        "variables: is list. Give a mapping: {'OMP_NUM_THREADS': '8'}."
    )


@pytest.mark.parametrize("value", ["x", "8", "a b", "/opt/x:/usr/bin", "é", "$HOME", "a=b;c"])
def test_a_plain_value_may_go_through_the_gateways_own_field(value):
    assert plain_env_value(value) is True


@pytest.mark.parametrize(
    "value", ["", "a,b", "it's", '"', "a\\b", "`", "a\nb", "a\tb", " a", "a ", "\0", "\ud800"]
)
def test_a_value_that_the_gateways_field_breaks_is_not_plain(value):
    assert plain_env_value(value) is False


# --- names ---


@pytest.mark.parametrize(
    ("pattern", "expanded"),
    [
        ("slurm-%j.out", "slurm-128.out"),
        ("slurm-%A_%a.out", "slurm-120_7.out"),
        ("job%4a-%2a.out", "job0007-07.out"),
        ("%99j", "0000000128"),
        ("%x-%u-%5x.log", "train-ann-train.log"),
        ("%n%t", "00"),
        ("100%%-%j", "100%-128"),
        ("%%j", "%j"),
        ("%N %s %J %z %", "%N %s %J %z %"),
        ("a\\%j", "a%j"),
        ("plain", "plain"),
    ],
)
def test_a_pattern_is_expanded_as_slurm_expands_it(pattern, expanded):
    assert (
        expand_pattern(pattern, job_id="128", name="train", user="ann", index=7, array_job_id="120")
        == expanded
    )


def test_what_is_not_known_stays_in_the_pattern():
    assert expand_pattern("%A_%a-%u", job_id="5", name="x", user=None, index=None) == "5_%a-%u"


def test_a_job_name_of_plain_characters_passes():
    assert check_job_name("train-v1.2_x") == "train-v1.2_x"
    assert check_job_name("x" * 128) == "x" * 128


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        (None, "is NoneType"),
        ("", "is empty"),
        ("my job", "holds ' '. Use letters, digits, '.', '_' and '-': 'my-job'."),
        ("a|b", "holds '|'"),
        ("a\n", "holds '\\n'"),
        ("été", "'ete'"),
        ("x" * 129, "has 129 characters; a job name ends at 128"),
    ],
)
def test_a_job_name_that_tables_would_break_is_refused(name, problem):
    message = refusal(check_job_name, name)
    assert message.startswith("job_name: ")
    assert problem in message


@pytest.mark.parametrize(
    ("text", "limit", "name"),
    [
        ("train model (été)", 50, "train-model-ete"),
        ("group.task__1", 50, "group.task__1"),
        ("--x--", 50, "x"),
        ("abc def", 4, "abc"),
        ("日本", 50, "job"),
        ("", 2, "jo"),
    ],
)
def test_a_slug_is_a_readable_name(text, limit, name):
    assert slug(text, limit) == name


@given(st.text(), st.integers(1, 200))
def test_any_text_has_a_slug_that_is_a_job_name(text, limit):
    name = slug(text, limit)
    assert 1 <= len(name) <= limit
    assert check_job_name(name[:128]) == name[:128]
    assert name[0].isalnum()
    assert slug(name, limit) == name
