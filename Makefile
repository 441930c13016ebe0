# SPDX-License-Identifier: GPL-2.0
# Everything made lies under build/.  Documentation/test-bed.rst says how it works.

MAKEFLAGS += --no-print-directory
export LINUX

.PHONY: help run test test-kvm bench shell kernel kernel-debug programs headers kvm-selftests tree refresh check clean setup

help:
	@echo 'make run           build the plain kernel, boot it, show a Linux guest whose memory is an address space'
	@echo 'make test          build both kernels and run every test (scripts/test --list: its stages)'
	@echo 'make test-kvm      the kernel'\''s own KVM selftests, on ordinary memslots and on windows'
	@echo 'make bench         measure what spaces cost, against what one would otherwise do; ONLY=NAME: some of it'
	@echo 'make shell         a shell in the plain kernel, with the programs; DEBUG=1: in the debug kernel'
	@echo
	@echo 'make kernel        build/kernel-plain'
	@echo 'make kernel-debug  build/kernel-debug'
	@echo 'make programs      the tools, selftests and samples, as static programs'
	@echo 'make kvm-selftests the programs that make test-kvm runs'
	@echo 'make headers       the kernel'\''s headers for programs: build/headers/include'
	@echo
	@echo 'make tree          bring build/linux up to date with this repository'
	@echo 'make refresh       bring what was changed in build/linux back into this repository'
	@echo 'make check         rustfmt, clippy and checkpatch'
	@echo 'make clean         remove build/'
	@echo
	@echo 'LINUX=/path/to/linux-7.3.x takes the source from there (a copy); otherwise it is downloaded.'
	@echo 'scripts/vm runs any command in the VM: scripts/vm --help'

setup:
	@scripts/setup

tree: setup
	@scripts/fetch-source
	@scripts/tree apply

refresh:
	@scripts/tree refresh

kernel: tree
	@scripts/stage kernel-plain 'build the plain kernel' scripts/kernel-build

kernel-debug: tree
	@scripts/stage kernel-debug 'build the debug kernel' scripts/kernel-build --debug

headers: tree
	@scripts/stage headers 'install the headers' \
		scripts/kernel-build headers_install INSTALL_HDR_PATH="$(CURDIR)/build/headers"

programs: setup
	@scripts/stage programs 'build the programs' cargo build --release --workspace --bins --examples

kvm-selftests: headers
	@scripts/stage kvm-selftests 'build the KVM selftests' \
		$(MAKE) -C build/linux/tools/testing/selftests/kvm -j$(shell nproc) ARCH=x86 \
		OUTPUT="$(CURDIR)/build/kvm-selftests" LDFLAGS='-static -s' \
		KHDR_INCLUDES="-isystem $(CURDIR)/build/headers/include"

run: kernel programs
	@scripts/vm --programs --with build/kernel-plain/arch/x86/boot/bzImage:/boot/bzImage \
		--timeout 120 -- vmm-demo

shell: $(if $(DEBUG),kernel-debug,kernel) programs
	@scripts/vm $(if $(DEBUG),--debug --no-leak-check,--with \
		build/kernel-plain/arch/x86/boot/bzImage:/boot/bzImage) --programs --tty -- sh

test: tree
	@scripts/test

test-kvm: kernel kvm-selftests
	@scripts/test-kvm

bench: kernel programs
	@scripts/bench $(if $(ONLY),--only '$(ONLY)')

check:
	@scripts/check

clean:
	@scripts/tree saved
	rm -rf build
