"""Which GPUs one start gets (light module: each start that may get one imports it).

Decided at each start, for a remembered plan cannot know what a job was given. Pure: what the plan says of GPUs (``gpus`` of its record, a
:class:`oci_hpc_hooks.model.GpuPlan` in plain form), the :class:`~oci_hpc_hooks.situation.Node` as it is now and the
:class:`~oci_hpc_hooks.situation.Situation` go in, an :class:`Outcome` comes out.

The ceiling is what the scheduler has given the job, by the first of these that tells: what the job's device cgroup lets be opened; the
scheduler's variables with numbers that count the whole node; identifiers in the variables that programs go by; numbers in these, where the
job's cgroup has been looked at and closes nothing, since under a scheduler that closes devices they count the job's own and start at 0 in
each job. Where none tells in a job, nothing is given. Requests choose below the ceiling.
"""

from __future__ import annotations

from oci_hpc_hooks.situation import whole_number

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Mapping, Sequence

    from oci_hpc_hooks.situation import Gpu, Node, Situation

OVERRIDE = "--annotation org.supercontainers.gpu=none"
KEY = "org.supercontainers.gpu.devices"

#: Words in variables such as NVIDIA_VISIBLE_DEVICES; Slurm's older releases write the last where a job has no GPU.
ALL, NONE = ("all",), ("none", "void", "nodevfiles")
#: Devices of one number range that are looked at.
_MOST = 4096


class Unit:
    """What can be given: a GPU with all its instances, or some of them."""

    __slots__ = ("gpu", "parts", "stack")

    def __init__(self, stack: str, gpu: Gpu, parts: Sequence[Gpu]) -> None:
        self.stack = stack
        self.gpu = gpu
        self.parts = tuple(parts)

    def nodes(self) -> list[str]:
        return list(dict.fromkeys([*self.gpu.nodes, *[node for part in self.parts for node in part.nodes]]))

    def __str__(self) -> str:
        """For people: "2 (GPU-3f1c…)", "0:1"."""
        number = str(self.gpu.number)
        if len(self.parts) < len(self.gpu.parts):
            return ", ".join([f"{number}:{part.number}" for part in self.parts])
        return f"{number} ({self.gpu.uuid or self.gpu.bus})" if self.gpu.uuid or self.gpu.bus else number


class Outcome:
    """What this start gets: ``nodes`` by stack; ``without``: patterns of devices that nobody has use for; ``hidden``: directories that are
    to be empty; ``variables`` to set; ``findings`` as in a plan's record; ``told``: what the log says. ``refusal``: what was wanted and
    found, where the wish came from, and the remedy; "" if nothing stands in the way."""

    __slots__ = ("findings", "hidden", "nodes", "refusal", "told", "variables", "without")

    def __init__(self) -> None:
        self.nodes: dict[str, list[str]] = {}
        self.without: list[str] = []
        self.hidden: list[str] = []
        self.variables: dict[str, str] = {}
        self.findings: list[dict[str, str]] = []
        self.told: dict[str, Any] = {}
        self.refusal = ("", "", "")


def decide(plan: dict[str, Any], node: Node, now: Situation) -> Outcome:
    """See above."""
    made = _Decision(plan, node, now)
    made.run()
    return made.outcome


class _Decision:
    def __init__(self, plan: dict[str, Any], node: Node, now: Situation) -> None:
        self.plan = plan
        self.node = node
        self.now = now
        self.outcome = Outcome()
        self.jobs = {name: job for name, job in plan["schedulers"].items() if job["when"] in now.launcher}
        # Whether this process is in a cgroup of the job, so that what it may open is what the job may.
        self.inside = any(_filled(job["scheduler"]["cgroup"], now.launcher) in node.cgroups for job in self.jobs.values())
        self.source = ""
        self.granted: dict[str, list[Unit]] = {}

    def run(self) -> None:
        whole = {name: [Unit(name, gpu, gpu.parts) for gpu in gpus] for name, gpus in self.node.gpus.items()}
        if not any(whole.values()):
            return
        self.granted = self.grant(whole)
        chosen = self.choose()
        if self.outcome.refusal[0]:
            return
        for name, units in chosen.items():
            self.outcome.nodes[name] = [path for unit in units for path in unit.nodes()]
            taken = {path for unit in units for path in unit.gpu.hidden}
            self.outcome.hidden += [path for gpu in self.node.gpus[name] for path in gpu.hidden if path not in taken]
            self.capabilities(self.plan["stacks"][name])
            self.numbered(name)
            self.requirements(name)
            self.selections(name, units)
        self.outcome.told = {"gpus": [f"{name} {unit}" for name, units in chosen.items() for unit in units], "gpus_by": self.source}

    # -- the ceiling

    def grant(self, whole: Mapping[str, list[Unit]]) -> dict[str, list[Unit]]:
        self.source = "no scheduler: all of the node"
        opened = {name: [unit for unit in map(_opened, units) if unit is not None] for name, units in whole.items()}
        if any(unit.gpu.closed or any(part.closed for part in unit.gpu.parts) for units in whole.values() for unit in units):
            self.source = "the device cgroup"
            if not any(opened.values()):
                self.none_granted("the device cgroup lets none of the node's GPUs be opened")
            return opened
        if not self.jobs:
            if self.now.unseen and not self.now.can_set:
                self.tell("note", "gpu-grant-unseen", "which GPUs a scheduler has given cannot be seen at this stage, and the container "
                          "gets those that its cgroup lets be opened", "register the hook at precreate, or pass the scheduler's "
                          "variables on: --env 'SLURM_*'")
            return opened
        for job in self.jobs.values():
            for variable in job["scheduler"]["gpus"]:
                if variable in self.now.launcher:
                    self.source = f"{variable}={self.now.launcher[variable]}"
                    return self.by_numbers(opened, self.now.launcher[variable])
        for named in (True, False):
            found = self.by_selection(opened, named)
            if found is not None:
                return found
        names = " and ".join(sorted(self.jobs))
        self.none_granted(f"this is a job of {names}, and nothing tells which GPUs it was given")
        return {name: [] for name in opened}

    def by_numbers(self, opened: Mapping[str, list[Unit]], text: str) -> dict[str, list[Unit]]:
        """Numbers that count the whole node: GPUs in PCI order, where one is divided its instances."""
        numbers = {number for word in _words(text) for number in _range(word)}
        found = {}
        for name, units in opened.items():
            flat = [one for unit in units for one in (_single(unit) if unit.gpu.parts else [unit])]
            found[name] = _joined([unit for number, unit in enumerate(flat) if number in numbers])
        if not any(found.values()):
            self.none_granted(f"{self.source} names no GPU of this node, which has {_listed(opened)}")
        elif any(_orders_differ(units) for units in opened.values()):
            self.tell("warning", "gpu-order", f"{self.source} is taken to count the GPUs in PCI order, and their device files count "
                      "otherwise", "let gres.conf list them in PCI order (AutoDetect does)", "site admin")
        return found

    def by_selection(self, opened: Mapping[str, list[Unit]], named: bool) -> dict[str, list[Unit]] | None:
        """By identifiers in the variables that programs go by, or by numbers there."""
        if not named and not self.inside:
            return None
        for name, units in opened.items():
            for variable in self.plan["stacks"][name]["selected_by"]:
                words = _words(self.now.launcher.get(variable, ""))
                if not words or any(word.isdigit() == named for word in words):
                    continue
                found = [unit for word in words for unit in _find(word, units)[0]]
                if found:
                    self.source = f"{variable}={self.now.launcher[variable]}"
                    return {other: _joined(found) if other == name else [] for other in opened}
        return None

    def none_granted(self, why: str) -> None:
        self.lacking("gpu-grant", f"a GPU is asked for, and {why}", self.plan["origin"], "start the job with GPUs (--gpus, --gres=gpu:N)",
                     self.plan["explicit"])

    # -- requests

    def choose(self) -> dict[str, list[Unit]]:
        """Those of the granted GPUs that are asked for; without a wish, all."""
        text, origin, refuses = self.wish()
        words = _words(text)
        if not origin or any(word.lower() in ALL for word in words):
            return self.granted
        if not words or any(word.lower() in NONE for word in words):
            return {name: [] for name in self.granted}
        chosen: dict[str, list[Unit]] = {name: [] for name in self.granted}
        missing = []
        for word in words:
            hits = 0
            why = ""
            for name, units in self.granted.items():
                found, problem = _find(word, self.visible(name))
                kept = _within(found, units)
                hits += len(kept)
                why = why or problem
                chosen[name] += kept
            if not hits:
                missing.append(f"{word} ({why})" if why else word)
        if missing:
            granted = _listed(self.granted)
            what = f"the GPU {', '.join(missing)} is asked for, and {self.source} gives {granted or 'none'}"
            self.lacking("gpu-not-granted", what, origin, f"ask for some of {granted}" if granted else "start the job with GPUs", refuses)
        return {name: _joined(units) for name, units in chosen.items()}

    def visible(self, name: str) -> list[Unit]:
        """What the vendor's programs would show outside of the container, which is what people count."""
        return [unit for unit in map(_opened, [Unit(name, gpu, gpu.parts) for gpu in self.node.gpus[name]]) if unit is not None]

    def wish(self) -> tuple[str, str, bool]:
        """What is asked for, by whom ("" = nobody), and whether more than was given is a refusal."""
        if self.plan["wish_origin"]:
            return self.plan["wish"], self.plan["wish_origin"], self.plan["refuses"]
        for rule in self.plan["stacks"].values():
            for variable in rule["chosen_by"]:
                if variable in self.now.given:
                    return self.now.given[variable], f"{variable}={self.now.given[variable]} of the caller", self.plan["refuses"]
        for rule in self.plan["stacks"].values():
            for variable in rule["chosen_by"]:
                value = self.now.inside.get(variable, "all")
                if not _words(value) or any(word.lower() in NONE for word in _words(value)):
                    return value, f"{variable}={value} of the image", False
                if value.strip().lower() not in ALL:
                    what = f"{variable}={value} of the image is passed over: which GPUs there are, only the node knows"
                    self.tell("note", "gpu-word-of-image", what, f"give --annotation {KEY}=…")
        return "", "", False

    def capabilities(self, rule: Mapping[str, Any]) -> None:
        """With a list of uses, devices for others stay away."""
        wanted = rule["capabilities"]
        value = self.value_of(wanted["variable"]) if wanted else ""
        words = [word.lower() for word in _words(value)]
        if words and "all" not in words:
            self.outcome.without += [pattern for pattern, uses in wanted["devices"].items()
                                     if not any(use in words for use in uses.split())]

    def value_of(self, variable: str) -> str:
        return self.now.given.get(variable, self.now.inside.get(variable, ""))

    def numbered(self, name: str) -> None:
        for variable, pattern in self.plan["stacks"][name]["numbered"].items():
            value = self.now.given.get(variable, "")
            there = self.node.numbered.get(variable, [])
            words = _words(value)
            if any(word.lower() in ALL for word in words):
                wanted = there
            else:
                wanted = [pattern.replace("*", str(number)) for word in words for number in _range(word)]
            lacking = [path for path in wanted if path not in there]
            if lacking:
                self.lacking("gpu-numbered", f"{variable}={value} asks for {', '.join(lacking[:8])}, which this node does not have",
                             f"{variable}={value} of the caller", "ask for those that there are", self.plan["refuses"])
            self.outcome.nodes[name] += [path for path in wanted if path in there]

    # -- conditions

    def requirements(self, name: str) -> None:
        rule = self.plan["stacks"][name]["requirements"]
        if not rule or (rule["unless"] and self.value_of(rule["unless"]).lower() in ("1", "true", "yes")):
            return
        facts = {"driver": self.node.drivers.get(name, "").strip()}
        if rule["interface"]:
            facts[rule["interface"]] = rule["versions"].get(facts["driver"].partition(".")[0], "")
        pattern = rule["variables"]
        for variable, value in {**self.now.inside, **self.now.given}.items():
            if not value.strip() or not (variable.startswith(pattern[:-1]) if pattern.endswith("*") else variable == pattern):
                continue
            holds = satisfied(value, facts)
            known = ", ".join([f"{key} {fact}" for key, fact in facts.items() if fact]) or "no version that is known"
            if holds is False:
                by = "of the caller" if variable in self.now.given else "of the image"
                remedy = "a newer driver, or an older image"
                remedy += f"; to start all the same give --env {rule['unless']}=1" if rule["unless"] else ""
                self.lacking("gpu-requirement", f"{variable} wants {_short(value)}, and this node has {known}", f"{variable} {by}", remedy,
                             self.plan["explicit"])
            elif holds is None:
                self.tell("note", "gpu-requirement", f"whether {variable}={_short(value)} holds cannot be told: this node has {known}")

    # -- what programs go by

    def selections(self, name: str, units: Sequence[Unit]) -> None:
        """Numbers in the variables that programs go by count other GPUs inside than they did outside."""
        for variable, how in self.plan["stacks"][name]["selected_by"].items():
            value = self.now.given.get(variable)
            if value is None and self.plan["copies"] and self.now.can_set:
                value = self.now.launcher.get(variable)
            if value is None:
                continue
            words = _words(value)
            meant = self.meant(name, words)
            if meant is None:
                new = value  # identifiers, or text of the vendor's own: it means inside what it means outside
            else:
                kept = [unit for unit in meant if any(unit.gpu is one.gpu for one in units)]
                if len(kept) < len(meant):
                    self.tell("warning", "gpu-selection", f"{variable}={value} selects GPUs that the container does not get",
                              "correct it, or ask for these GPUs too (org.supercontainers.gpu.devices)")
                order = [one.gpu for one in units]
                inside = [order.index(unit.gpu) for unit in kept]
                if [str(number) for number in inside] == words:
                    new = value
                else:
                    named = how == "uuid" and all(unit.gpu.uuid for unit in kept)
                    new = ",".join([unit.gpu.uuid if named else str(number) for unit, number in zip(kept, inside)])
            if new == self.now.inside.get(variable):
                continue
            if self.now.can_set:
                self.outcome.variables[variable] = new
                if new != value:
                    self.tell("note", "gpu-selection", f"{variable}={value} counts GPUs outside of the container, and is {new} in it")
            else:
                self.tell("warning", "gpu-selection", f"{variable}={value} counts GPUs outside of the container, and selects others in it",
                          f"give --env {variable}={new}, or register the hook at precreate")

    def meant(self, name: str, words: Sequence[str]) -> list[Unit] | None:
        """Which GPUs numbers in such a variable mean, None if they are no numbers.

        In the job's own cgroup, and without a scheduler, they count what can be opened. Else the cgroup of the job has not been seen: then
        those that are all among the granted by the node's count are so meant, if they are not also the job's own from 0 up."""
        if not words or not all(word.isdigit() for word in words):
            return None
        numbers = [whole_number(word, -1) for word in words]
        counted = self.visible(name)
        if self.jobs and not self.inside:
            granted = self.granted[name]
            by_node = [unit.gpu.number for unit in granted]
            if not all(number in by_node for number in numbers):
                counted = granted
        return [counted[number] for number in numbers if 0 <= number < len(counted)]

    # -- words

    def lacking(self, code: str, what: str, origin: str, remedy: str, refuses: bool) -> None:
        self.tell("error" if refuses else "warning", code, what, remedy, origin=origin)
        if refuses and not self.outcome.refusal[0]:
            self.outcome.refusal = what, origin, remedy

    def tell(self, severity: str, code: str, what: str, remedy: str = "", who: str = "user", origin: str = "") -> None:
        self.outcome.findings.append({"severity": severity, "code": code, "what": what, "origin": origin or self.plan["origin"],
                                      "remedy": remedy, "who": who})


def _opened(unit: Unit) -> Unit | None:
    """What of a GPU the device cgroup lets be opened."""
    if unit.gpu.closed:
        return None
    parts = [part for part in unit.parts if not part.closed]
    return Unit(unit.stack, unit.gpu, parts) if parts or not unit.gpu.parts else None


def _single(unit: Unit) -> list[Unit]:
    return [Unit(unit.stack, unit.gpu, (part,)) for part in unit.parts]


def _joined(units: Sequence[Unit]) -> list[Unit]:
    """Each GPU once, with all of its instances that are named, in the node's order."""
    found: dict[int, Unit] = {}
    for unit in units:
        known = found.get(unit.gpu.number)
        parts = [part for part in unit.gpu.parts if part in unit.parts or (known is not None and part in known.parts)]
        found[unit.gpu.number] = Unit(unit.stack, unit.gpu, parts)
    return [found[number] for number in sorted(found)]


def _within(wanted: Sequence[Unit], granted: Sequence[Unit]) -> list[Unit]:
    """What of the wanted was granted: a GPU of which some instances were is given with these."""
    found = []
    for unit in wanted:
        for own in granted:
            if own.gpu is not unit.gpu:
                continue
            parts = [part for part in own.parts if part in unit.parts]
            if parts or not unit.gpu.parts:
                found.append(Unit(unit.stack, unit.gpu, parts))
    return found


def _find(word: str, units: Sequence[Unit]) -> tuple[list[Unit], str]:
    """The GPUs that a word means: a number, a range of numbers, ``GPU:INSTANCE``, a PCI address, an identifier or its beginning (of one GPU
    only), ``0x`` and an identifier that is a number in hexadecimal digits. And why it means none, where that is not plain."""
    low = word.lower()
    numbers = _range(word)
    if numbers:
        return [unit for number, unit in enumerate(units) if number in numbers], ""
    gpu, colon, part = word.partition(":")
    if colon and gpu.isdigit() and part.isdigit() and len(gpu) < 4 and len(part) < 4:
        number = int(gpu)
        mine = [one for one in units[number:number + 1] for one in _single(one) if one.parts[0].number == int(part)]
        return mine, ""
    by_bus = [unit for unit in units if unit.gpu.bus and unit.gpu.bus == low]
    if by_bus:
        return by_bus, ""
    if low.startswith("0x"):
        return [unit for unit in units if unit.gpu.uuid.isdigit() and _hexadecimal(low) == int(unit.gpu.uuid)], ""
    for unit in units:
        mine = [one for one in _single(unit) if one.parts[0].uuid.lower() == low]
        if mine:
            return mine, ""
    named = [unit for unit in units if unit.gpu.uuid and unit.gpu.uuid.lower().startswith(low)]
    if len({unit.gpu.uuid for unit in named}) > 1:
        return [], "it begins the identifiers of several"
    if not named and low.startswith("mig-"):
        return [], "an instance's identifier that only the driver can read: write it as GPU:INSTANCE, such as 0:1"
    return named, ""


def _hexadecimal(text: str) -> int:
    try:
        return int(text, 16)
    except ValueError:
        return -1


def _range(word: str) -> range:
    """``3`` and ``0-3`` as numbers, else none. Slurm writes a count behind it in brackets, which is passed over."""
    first, dash, last = word.partition("(")[0].partition("-")
    low, high = whole_number(first, -1), whole_number(last if dash else first, -1)
    return range(low, high + 1) if 0 <= low <= high < low + _MOST else range(0)


def _words(text: str) -> list[str]:
    """podman takes a comma in ``--annotation`` for the beginning of the next one, hence "+"."""
    return list(dict.fromkeys(text.replace("+", " ").replace(",", " ").split()))


def _orders_differ(units: Sequence[Unit]) -> bool:
    """Whether the device files of GPUs count them otherwise than the PCI bus does."""
    names = [unit.gpu.nodes[0] for unit in units]
    numbers = [whole_number(name[len(name.rstrip("0123456789")):], -1) for name in names]
    return numbers != sorted(numbers)


def _listed(units: Mapping[str, list[Unit]]) -> str:
    several = len([name for name, found in units.items() if found]) > 1
    return ", ".join([f"{name} {unit}" if several else str(unit) for name, found in units.items() for unit in found])


def _filled(text: str, variables: Mapping[str, str]) -> str:
    """``text`` with variables in it, a text that is no name of a directory if it lacks one."""
    head, *parts = text.split("${")
    for part in parts:
        name, _, rest = part.partition("}")
        if not variables.get(name):
            return "/"
        head += variables[name] + rest
    return head or "/"


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "…"


def satisfied(text: str, facts: Mapping[str, str]) -> bool | None:
    """Whether conditions hold: of alternatives with blanks between, one must in all its parts, with commas between. None: it cannot be
    told, for a fact is not known. The language is that of ``nvidia-container-cli --require``: no other vendor has one yet."""
    answers = []
    for alternative in text.split():
        parts = [_condition(part, facts) for part in alternative.split(",") if part]
        answers.append(False if False in parts else None if None in parts else True)
    return True if True in answers else None if None in answers else not answers


def _condition(text: str, facts: Mapping[str, str]) -> bool | None:
    for operator in (">=", "<=", "!=", ">", "<", "="):
        name, found, value = text.partition(operator)
        if found:
            break
    fact = facts.get(name.strip(), "")
    if not found or not fact:
        return None
    have, want = _version(fact), _version(value)
    if not have or not want:
        return fact == value if operator == "=" else fact != value if operator == "!=" else None
    length = max(len(have), len(want))
    have, want = [*have, *[0] * (length - len(have))], [*want, *[0] * (length - len(want))]
    return {">=": have >= want, "<=": have <= want, "!=": have != want, ">": have > want, "<": have < want, "=": have == want}[operator]


def _version(text: str) -> list[int]:
    numbers = [whole_number(part, -1) for part in text.strip().split(".")]
    return [] if -1 in numbers else numbers
