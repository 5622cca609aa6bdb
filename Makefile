# Everything that is built lies in build/. Setting up needs root on Debian 12; each target installs what it lacks.
PYTHON := build/venv/bin/python
PYTEST := $(PYTHON) -m pytest --durations=10

.PHONY: help demo test test-all unit python39 debian13 lint shell bench storm rpm bench-application bench-scale matrix fuzz soak generated site setup images \
	images-apps images-matrix clean
.NOTPARALLEL:

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /  make \1	/p' $(MAKEFILE_LIST) | expand -t 18

demo: setup ## one image, two MPIs: podman run without and with the hooks
	@tests/bed/images.sh mpich5 bookworm
	@$(PYTHON) -m tests.demo.demo

test: setup images lint ## what guards every change: lint, unit tests, real containers (40 minutes on two cores)
	$(PYTEST) -m "not long"
	tests/bed/python39.sh

test-all: setup images images-matrix lint ## the same with the long matrices (some three hours on two cores)
	$(PYTEST)
	tests/bed/python39.sh

unit: setup ## unit tests alone
	$(PYTEST) tests/unit

python39: setup ## unit tests on Python 3.9 alone, in a Debian 11 folder
	@tests/bed/images.sh chroot python39
	tests/bed/python39.sh

debian13: setup images ## engine tests and attacks with Debian 13's podman 5, crun, runc and Python 3.13, in a folder (30 minutes)
	@tests/bed/images.sh trixie-node python313
	tests/bed/debian13.sh

lint: setup ## ruff, mypy --strict, and whether the documentation is whole and that of the code
	$(PYTHON) -m ruff check
	$(PYTHON) -m mypy
	$(PYTHON) docs/generate.py --check
	$(PYTHON) -m mkdocs build --quiet --strict

site: lint ## the documentation as pages of HTML, in build/site-html

generated: setup ## man pages, shell completion, reference pages: after a change of the command line or a schema
	$(PYTHON) docs/generate.py

shell: setup ## a shell in which podman and oci-hpc-hooks work on this machine
	@tests/bed/images.sh mpich5 bookworm
	@$(PYTHON) tests/bed/bed.py shell

bench: setup images ## what a hook costs, side by side (SAVE=--save: as the result that later ones are compared with)
	@$(PYTHON) tests/bed/bed.py exec $(PYTHON) benchmarks/hook_start.py $(SAVE) $(ARGUMENTS)
	@$(PYTHON) -m benchmarks.plot

storm: setup images ## 1 to 128 containers at once: what fails, and what is left behind
	@$(PYTHON) tests/bed/bed.py exec $(PYTHON) benchmarks/storm.py $(ARGUMENTS)

bench-application: setup images-apps ## LAMMPS, HPCC, NetPIPE and the start of ranks: native, and in containers (8 minutes; ARGUMENTS=--short)
	@$(PYTHON) tests/bed/bed.py exec $(PYTHON) benchmarks/application.py $(ARGUMENTS)

bench-scale: setup images ## what 10,000 nodes ask of shared file systems: counts, not times
	@$(PYTHON) tests/bed/bed.py exec $(PYTHON) benchmarks/scale.py $(ARGUMENTS)

matrix: setup images images-matrix ## every image with every MPI of a site, for real, into docs/compatibility.md (20 minutes)
	@$(PYTHON) -m tests.matrix.matrix

fuzz: setup ## every parser of foreign bytes, guided by coverage, one after the other (SECONDS=3600 in all, ARGUMENTS=--write)
	@$(PYTHON) -c 'import atheris' 2>&- || $(PYTHON) -m pip install --quiet atheris
	@nice -n 19 $(PYTHON) tests/fuzz/fuzz.py --seconds $(or $(SECONDS),3600) $(ARGUMENTS)

soak: setup images ## starts and stops with hooks of two versions side by side, and what they leave behind (COUNT=2000, ARGUMENTS=--write)
	@$(PYTHON) -m tests.soak.soak --count $(or $(COUNT),2000) $(ARGUMENTS)

rpm: setup ## the RPM in build/rpm, and rpmlint's word on it
	@packaging/rpm/build.sh

setup: ## packages, virtual environment, the user hpcuser
	@tests/bed/setup.sh

images: setup ## root file systems of the images, site MPIs
	@tests/bed/images.sh

images-apps: setup ## those that only bench-application needs
	@tests/bed/images.sh apps

images-matrix: setup ## those that only the matrix needs
	@tests/bed/images.sh matrix

clean: ## remove all that was built, containers and mounts of the bed
	@tests/bed/clean.sh
