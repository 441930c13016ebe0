// SPDX-License-Identifier: GPL-2.0
/* EXPORT_SYMBOL is a macro of C; the functions are in Rust. */
#include <linux/address_space_fd.h>
#include <linux/export.h>

EXPORT_SYMBOL_GPL(asfd_is_mirror);
EXPORT_SYMBOL_GPL(asfd_mm);
EXPORT_SYMBOL_GPL(asfd_window_check);
EXPORT_SYMBOL_GPL(asfd_client_register);
EXPORT_SYMBOL_GPL(asfd_client_unregister);
EXPORT_SYMBOL_GPL(asfd_client_windows);
