"""The link from a task to its job's page."""

import pytest

from airflow_hpc_provider.links import HpcJobLink, job_page
from airflow_hpc_provider.operators.jobs import HpcSubmitJobOperator


@pytest.mark.parametrize(
    ("ui_url", "account", "page"),
    [
        ("https://my.hpc.ch", "staff", "https://my.hpc.ch/compute/systems/daint/accounts/staff/jobs/12"),
        (
            "https://my.hpc.ch/ui/",
            "staff",
            "https://my.hpc.ch/ui/compute/systems/daint/accounts/staff/jobs/12",
        ),
        ("https://my.hpc.ch", None, "https://my.hpc.ch/compute/systems/daint"),
        ("https://my.hpc.ch/{system}/jobs/{job_id}", None, "https://my.hpc.ch/daint/jobs/12"),
        ("https://my.hpc.ch/?job={job_id}&of={account}", "a/b", "https://my.hpc.ch/?job=12&of=a%2Fb"),
    ],
)
def test_the_page_of_a_job(ui_url, account, page):
    assert job_page(ui_url, system="daint", job_id="12", account=account) == page


def test_what_comes_from_data_cannot_lead_elsewhere():
    page = job_page("https://my.hpc.ch/{system}", system="../{account}?x#", job_id="1", account="me")
    assert page == "https://my.hpc.ch/..%2F%7Baccount%7D%3Fx%23"


def test_a_task_without_a_page_has_no_link():
    task = HpcSubmitJobOperator(task_id="job", script="#!/bin/bash\n")
    (link,) = task.operator_extra_links
    assert isinstance(link, HpcJobLink)
    assert link.get_link(task, ti_key=None) == ""
    task.job_page = "https://my.hpc.ch/1"
    assert link.get_link(task, ti_key=None) == "https://my.hpc.ch/1"
