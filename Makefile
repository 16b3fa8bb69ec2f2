# Each target does its set-up too. `make demo` and `make test` are all that a newcomer needs.
.PHONY: setup kernel agent agents wasm web wheel deb images python c arm test-images demo test test-all soak attack intel-check lint bench bench-quick bench-peers clean

LEVEL = test
demo kernel agent images: LEVEL = demo
deb: LEVEL = deb

setup:
	@scripts/setup $(LEVEL)

kernel: setup
	@kernel/build

agent: setup
	@agent/build.sh

# The runtime for programs of WebAssembly, and an image that has nothing else.
wasm: setup agent
	@scripts/build-image wasm

# Of both architectures: a wheel carries them, so that each kind of machine can build images for the other.
agents: setup agent
	@agent/build.sh x86_64
	@agent/build.sh aarch64
	@wasm/build.sh x86_64
	@wasm/build.sh aarch64

# The playground's page. Nothing else needs npm: where it is missing, a server says so at /.
web: setup
	@scripts/web

wheel: agents
	@scripts/web --if-possible
	@rm -rf build/lib* # what is gone from the tree would come from there
	@.venv/bin/python -m pip wheel -q --no-deps --wheel-dir build .

# With the service's units and the manual pages.
deb: agents
	@scripts/web --if-possible
	@rm -rf build/lib* # as for a wheel
	@scripts/deb

images: setup agent
	@scripts/build-image rust --compress lz4

python: setup agent
	@scripts/build-image python

c: setup agent
	@scripts/build-image c --compress lz4

# What an emulated 64-bit Arm host boots, on a machine of another architecture.
arm: setup agents
	@test "$$(uname -m)" = aarch64 || kernel/build --arch aarch64
	@test "$$(uname -m)" = aarch64 || scripts/build-image rust --arch aarch64 --compress lz4

# What the whole counts boot besides: Debian's own kernel, Go (prepared in a machine: on an emulated host this takes long, once),
# the compilers of Debian 12, a Rust image laid out as Docker's is, Rust and Go with packages, Rust, C and Go for WebAssembly (Go
# is prepared as its own image is), and the other languages for an emulated 64-bit Arm host (of Go, C++, JavaScript, TypeScript and
# Java parts are prepared in one).
test-images: setup agent kernel python c wasm arm
	@scripts/debian/cloud-kernel >/dev/null
	@scripts/build-image go
	@scripts/build-image go@1.19 --suite bookworm
	@scripts/build-image rust@1.63 --suite bookworm
	@scripts/build-image rust --layout docker --output build/rust-docker
	@for name in rust go; do .venv/bin/python -P -m scripts.debian.package_images $$name build/$$name-packages || exit; done
	@for name in javascript typescript java cpp; do scripts/build-image $$name --compress lz4 || exit; done
	@test "$$(uname -m)" = aarch64 || scripts/build-image wasm --arch aarch64
	@for name in rust-wasm c-wasm go-wasm; do scripts/build-image $$name --compress lz4 || exit; done
	@test "$$(uname -m)" = aarch64 || scripts/build-image go --arch aarch64
	@test "$$(uname -m)" = aarch64 || for name in c python javascript typescript java cpp; do \
		scripts/build-image $$name --arch aarch64 --compress lz4 || exit; done

demo: setup kernel agent images
	@scripts/with-kvm scripts/demo

# The reduced counts; test-all has the whole ones and writes its report.
test: setup kernel agent images python c wasm arm
	@scripts/web --if-possible
	@scripts/test $(ARGS)

test-all: setup kernel agent images python c wasm arm test-images
	@scripts/web --if-possible
	@MAYFLY_FULL=1 scripts/test --report docs/test-report.md $(ARGS)

# Chaos for HOURS hours; each server that falls is said with its seed.
soak: setup
	@.venv/bin/python -m scripts.chaos --hours $(or $(HOURS),8)

# Hostile snippets against this build, in the languages that have an image here (make test-images has all); some 20 minutes.
attack: setup kernel agent images python
	@scripts/with-kvm python -m scripts.attack.main --report docs/attack-report.md

# Before a release: our tests on Intel processors as Bochs emulates them, 20 minutes and once 10 to 20 for building Bochs.
intel-check: setup kernel agent
	@scripts/intel-check --report docs/intel-report.md

lint: setup
	@scripts/lint

bench: setup kernel agent images python arm
	@mkdir -p build
	@scripts/with-kvm python -m scripts.bench.starts measure build/bench.json
	@scripts/with-kvm python -m scripts.bench.network build/bench-network.json
	@scripts/with-kvm python -m scripts.bench.snapshots linux build/bench-snapshots.json
	@.venv/bin/python -m scripts.bench.snapshots tiny build/bench-tiny.json
	@.venv/bin/python -m scripts.bench.requests measure build/bench-requests.json
	@.venv/bin/python -m scripts.bench.split build/bench-split.json
	@.venv/bin/python -m scripts.bench.readers build/bench-readers.json
	@.venv/bin/python -m scripts.bench.readers build/bench-readers-tls.json --tls
	@.venv/bin/python -m scripts.bench.functions tiny build/bench-functions.json
	@.venv/bin/python -m scripts.bench.moves build/bench-moves.json
	@.venv/bin/python -m scripts.bench.wasm build/bench-wasm.json
	@.venv/bin/python -m scripts.bench.fleet build/bench-fleet.json
	@scripts/with-kvm python -m scripts.bench.functions linux build/bench-functions.json
	@.venv/bin/python -m scripts.bench.workloads native build
	@.venv/bin/python -m scripts.bench.workloads warm build
	@scripts/with-kvm python -m scripts.bench.workloads linux build
	@test "$$(uname -m)" = aarch64 || scripts/with-kvm --arch aarch64 python -m scripts.bench.starts measure build/bench-aarch64.json --rounds 1
	@.venv/bin/python -m scripts.bench.starts plot build/bench.json build/bench.png
	@.venv/bin/python -m scripts.bench.snapshots plot build/bench-snapshots.json build/bench-snapshots.png
	@.venv/bin/python -m scripts.bench.requests plot build/bench-requests.json build/bench-requests.png
	@.venv/bin/python -m scripts.bench.functions plot build/bench-functions.json build/bench-functions.png
	@ls build/bench* build/workload*

# Counts against the last release's, no times: seconds, and part of .ci/run.
bench-quick: setup
	@.venv/bin/python -m scripts.bench.quick

# Beside Firecracker and QEMU's microvm: in an emulated host, half an hour where nothing else runs.
bench-peers: setup kernel agent
	@mkdir -p build
	@firecracker=$$(.venv/bin/python -m scripts.bench.peers fetch) && boxes=$$(.venv/bin/python -m scripts.bench.boxes fetch) && \
		.venv/bin/python -m scripts.bench.native build/bench-native.json --firecracker "$$firecracker" && \
		scripts/with-kvm --cpus 2 python -m scripts.bench.peers measure build/bench-peers.json --firecracker "$$firecracker" --boxes "$$boxes"
	@.venv/bin/python -m scripts.bench.peers plot build/bench-peers.json build/bench-peers.png

# What was built in this folder. Kernels, images and the emulated host's disk are in $$XDG_CACHE_HOME/mayfly and $$XDG_DATA_HOME/mayfly.
clean:
	rm -rf build .venv .mypy_cache .import_linter_cache .ruff_cache .pytest_cache .hypothesis .bench *.egg-info agent/target wasm/target
	rm -rf web/node_modules api/playground/static
	rm -f vmm/kvm/_kvm*.so vmm/kvm/_kvm.c vmm/kvm/_kvm.o imagegen/agents/mayfly-*
