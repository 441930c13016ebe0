// SPDX-License-Identifier: GPL-2.0
/* Exporting is a macro of C; the functions are in Rust. */
#include <linux/address_space_fd.h>
#include <linux/export.h>

#define EXPORT_RUST_GPL(name)	\
	__typeof__(name) name;	\
	EXPORT_SYMBOL_GPL(name)

EXPORT_RUST_GPL(asfd_mm);
EXPORT_RUST_GPL(asfd_window_check);
EXPORT_RUST_GPL(asfd_client_register);
EXPORT_RUST_GPL(asfd_client_unregister);
EXPORT_RUST_GPL(asfd_client_windows);
