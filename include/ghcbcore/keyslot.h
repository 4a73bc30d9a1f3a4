/* Key slots: which key of the memory controller an access is encrypted with.
 *
 * As a Genoa's fabric counts them: slot 0 is no encryption, then comes one for each ASID. What a
 * line of a cache is known by, besides its address, is this number too.
 *
 * Source: fact sheet of the SNP host, 6.2 (AMD-ASPFW).
 */
#ifndef GHCBCORE_KEYSLOT_H
#define GHCBCORE_KEYSLOT_H

/* cffi: begin */
#define GHCB_KEY_SLOT_NONE 0
#define GHCB_KEY_SLOT_FIRST_ASID 1
#define GHCB_KEY_SLOT_LAST_ASID 1006
#define GHCB_KEY_SLOT_IOMMU 1008
#define GHCB_KEY_SLOT_RESERVED_FIRST 1016
#define GHCB_KEY_SLOT_RESERVED_LAST 1022
#define GHCB_KEY_SLOT_SME 1023
#define GHCB_KEY_N_SLOTS 1024
/* cffi: end */

#endif
