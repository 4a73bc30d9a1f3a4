/* What SEV and SNP firmware answers to a command.
 *
 * The low half of INFO2 after an SNP guest request carries such a status; so does every command
 * that a host sends. Codes of the SEV and of the SNP specification share one number space.
 *
 * Source: Linux linux/psp-sev.h, virtee sev error.rs.
 */
#ifndef GHCBCORE_PSP_H
#define GHCBCORE_PSP_H

/* cffi: begin */
#define SNP_FW_OK 0x00
#define SNP_FW_PLATFORM_STATE 0x01
#define SNP_FW_GUEST_STATE 0x02
#define SNP_FW_CONFIG 0x03
#define SNP_FW_LENGTH 0x04
#define SNP_FW_ALREADY_OWNED 0x05
#define SNP_FW_CERTIFICATE 0x06
#define SNP_FW_POLICY 0x07
#define SNP_FW_INACTIVE 0x08
#define SNP_FW_ADDRESS 0x09
#define SNP_FW_SIGNATURE 0x0a
#define SNP_FW_MEASUREMENT 0x0b
#define SNP_FW_ASID_OWNED 0x0c
#define SNP_FW_ASID 0x0d
#define SNP_FW_WBINVD_REQUIRED 0x0e
#define SNP_FW_DF_FLUSH_REQUIRED 0x0f
#define SNP_FW_GUEST_INVALID 0x10
#define SNP_FW_COMMAND 0x11
#define SNP_FW_ACTIVE 0x12
#define SNP_FW_HW_PLATFORM 0x13
#define SNP_FW_HW_UNSAFE 0x14
#define SNP_FW_UNSUPPORTED 0x15
#define SNP_FW_PARAM 0x16
#define SNP_FW_RESOURCE_LIMIT 0x17
#define SNP_FW_SECURE_DATA 0x18
#define SNP_FW_PAGE_SIZE 0x19
#define SNP_FW_PAGE_STATE 0x1a
#define SNP_FW_METADATA_ENTRY 0x1b
#define SNP_FW_PAGE_OWNER 0x1c
#define SNP_FW_AEAD_OVERFLOW 0x1d
#define SNP_FW_RING_BUFFER_EXITED 0x1f
#define SNP_FW_RMP_INIT_REQUIRED 0x20
#define SNP_FW_BAD_SVN 0x21
#define SNP_FW_BAD_VERSION 0x22
#define SNP_FW_SHUTDOWN_REQUIRED 0x23
#define SNP_FW_UPDATE_FAILED 0x24
#define SNP_FW_RESTORE_REQUIRED 0x25
#define SNP_FW_RMP_INIT_FAILED 0x26
#define SNP_FW_KEY 0x27
#define SNP_FW_SHUTDOWN_INCOMPLETE 0x28
#define SNP_FW_BUFFER_LENGTH 0x30
#define SNP_FW_EXPAND_BUFFER 0x31
#define SNP_FW_SPDM_REQUEST 0x32
#define SNP_FW_SPDM_ERROR 0x33
#define SNP_FW_DEVICE_CONNECTION 0x35
#define SNP_FW_DEVICE_CONTEXT 0x36
#define SNP_FW_TDI_CONTEXT 0x37
#define SNP_FW_TDI 0x38
#define SNP_FW_RECLAIM_REQUIRED 0x39
#define SNP_FW_IN_USE 0x3a
#define SNP_FW_DEVICE_STATE 0x3b
#define SNP_FW_TDI_STATE 0x3c
#define SNP_FW_DEVICE_CERT_CHANGED 0x3d
#define SNP_FW_RESYNC_REQUIRED 0x3e
#define SNP_FW_RESPONSE_TOO_LARGE 0x3f
#define SNP_FW_NOT_CALLED 0xffffffff /* not firmware's own: it was never reached */
/* cffi: end */

#endif
