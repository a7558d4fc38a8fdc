#!/bin/sh
# Compiles the programs. The objects are committed, so that a build needs no clang; CI compiles
# them again, and compares (TestObjects).
set -e
exec go run github.com/cilium/ebpf/cmd/bpf2go -cc "${CLANG:-clang}" -target bpfel,bpfeb -go-package fastpath \
	-output-dir "${1:-.}" programs bpf/fastpath.c -- \
	-Wall -Werror -I"/usr/include/$(uname -m)-linux-gnu"
