"""Which interfaces a container is to get: by whose word, and by which names."""

from __future__ import annotations

from dataclasses import replace
from typing import Dict, Optional, Tuple

import pytest

from oci_hpc_hooks.decide.network import with_network
from oci_hpc_hooks.decide.request import NETWORK, request
from oci_hpc_hooks.model import ERROR, NOTE, NOTHING, REFUSED, WARNING, Interface, Plan, ResolvedProfile, Site
from tests.unit.decide.world import container, inventory

HSN, IB = Interface("hsn*", "ipvlan"), Interface("ib0", "move")


def profile(name: str, *interfaces: Interface) -> ResolvedProfile:
    return ResolvedProfile(name, {"network": name}, f"/etc/{name}.json", (), interfaces=interfaces)


def decided(site: Optional[Site] = None, **sources: Dict[str, str]) -> Plan:
    site = site or Site()
    asked = request(container(**sources), site)  # type: ignore[arg-type]
    return with_network(Plan(NOTHING, asked.findings), asked, inventory(profile("hsn", HSN), profile("ib", IB), site=site))


@pytest.mark.parametrize("value, expected", [
    ("hsn", (HSN,)), ("IB+hsn", (IB, HSN)), ("auto", (HSN, IB)), ("none", ()), ("", ()),
])
def test_by_name(value: str, expected: Tuple[Interface, ...]) -> None:
    made = decided(annotations={NETWORK: value})
    assert (made.network.interfaces if made.network else ()) == expected
    assert made.network is None or made.network.explicit == (value != "auto")


def test_an_image_cannot_ask() -> None:
    made = decided(labels={NETWORK: "hsn"})
    assert made.network is None
    assert [(finding.severity, finding.code) for finding in made.findings] == [(WARNING, "not-for-images")]
    assert "what interfaces a container gets is for whoever starts it to say" in made.findings[0].what


def test_the_site_can_for_all_and_refuses_nobody() -> None:
    made = decided(Site(defaults={NETWORK: "ib"}))
    assert made.network is not None and made.network.interfaces == (IB,) and not made.network.explicit
    made = decided(Site(defaults={NETWORK: "eth"}))
    assert made.network is None and made.findings[0].severity == NOTE and "known are auto, none, hsn, ib" in made.findings[0].what


def test_a_caller_who_names_an_unknown_one_is_refused() -> None:
    made = decided(annotations={NETWORK: "hsn+eth"})
    assert made.verdict == REFUSED and made.findings[-1].severity == ERROR
    assert "--annotation org.supercontainers.network=none" in made.findings[-1].remedy


def test_a_site_that_never_refuses() -> None:
    made = decided(Site(on_refusal="run-without"), annotations={NETWORK: "hsn"})
    assert made.network is not None and not made.network.explicit
    assert decided(Site(on_refusal="run-without"), annotations={NETWORK: "eth"}).verdict == NOTHING


def test_the_callers_none_beats_the_default() -> None:
    assert decided(Site(defaults={NETWORK: "ib"}), annotations={NETWORK: "none"}).network is None


def test_nothing_beside_a_refusal() -> None:
    asked = request(container(annotations={NETWORK: "hsn"}), Site())
    refused = replace(Plan(REFUSED, ()))
    assert with_network(refused, asked, inventory(profile("hsn", HSN))) is refused
