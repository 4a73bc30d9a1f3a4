/* The #HV doorbell page: where the hypervisor leaves interrupts under restricted injection.
 *
 * The first bytes are for the privilege level that runs; three blocks follow for VMPL1 to VMPL3,
 * for a level above that hands interrupts on. A guest clears GHCB_DOORBELL_NO_SIGNAL first, then
 * takes the vector by compare-exchange.
 *
 * Left to others: how the page is announced (NAE 0x80000014 in nae.h).
 *
 * Source: SVSM hv_doorbell.rs; the fork of Linux that belongs to it.
 */
#ifndef GHCBCORE_DOORBELL_H
#define GHCBCORE_DOORBELL_H

#include <stddef.h>
#include <stdint.h>

/* cffi: begin */
#define GHCB_DOORBELL_SIZE 0x1000
#define GHCB_DOORBELL_OFF_VECTOR 0x000
#define GHCB_DOORBELL_OFF_FLAGS 0x001
#define GHCB_DOORBELL_OFF_NO_EOI 0x002
#define GHCB_DOORBELL_OFF_EVENTS 0x003
#define GHCB_DOORBELL_OFF_VMPL1 0x040
#define GHCB_DOORBELL_OFF_VMPL2 0x080
#define GHCB_DOORBELL_OFF_VMPL3 0x0c0
#define GHCB_DOORBELL_OFF_END 0x100

/* Bit numbers in flags. */
#define GHCB_DOORBELL_NMI 0
#define GHCB_DOORBELL_MC 1
#define GHCB_DOORBELL_NO_SIGNAL 7 /* "no further signal" */

/* Fields of the status word of a lower VMPL. */
#define GHCB_DOORBELL_STATUS_VECTOR_SHIFT 0
#define GHCB_DOORBELL_STATUS_VECTOR_WIDTH 8
#define GHCB_DOORBELL_STATUS_NMI_SHIFT 8
#define GHCB_DOORBELL_STATUS_NMI_WIDTH 1
#define GHCB_DOORBELL_STATUS_MC_SHIFT 9
#define GHCB_DOORBELL_STATUS_MC_WIDTH 1
#define GHCB_DOORBELL_STATUS_LEVEL_SHIFT 10
#define GHCB_DOORBELL_STATUS_LEVEL_WIDTH 1
#define GHCB_DOORBELL_STATUS_MULTIPLE_SHIFT 14
#define GHCB_DOORBELL_STATUS_MULTIPLE_WIDTH 1
#define GHCB_DOORBELL_STATUS_IPI_SHIFT 27
#define GHCB_DOORBELL_STATUS_IPI_WIDTH 1
#define GHCB_DOORBELL_STATUS_VECTOR_31_SHIFT 31
#define GHCB_DOORBELL_STATUS_VECTOR_31_WIDTH 1

typedef struct {
    uint32_t status;
    uint32_t irr[7]; /* requests for vectors 32 to 255: bit i of word k is 32 * (k + 1) + i */
    uint32_t isr[8]; /* in service, vectors 0 to 255 */
} ghcb_doorbell_vmpl_t;

typedef struct {
    uint8_t vector; /* pending; 0: none */
    uint8_t flags;
    uint8_t no_eoi; /* the vector needs no end of interrupt */
    uint8_t events; /* per VMPL: something is pending below */
    uint8_t reserved_004[0x3c];
    ghcb_doorbell_vmpl_t vmpl1;
    ghcb_doorbell_vmpl_t vmpl2;
    ghcb_doorbell_vmpl_t vmpl3;
    uint8_t reserved_100[0xf00];
} ghcb_doorbell_t;
/* cffi: end */

_Static_assert(offsetof(ghcb_doorbell_t, flags) == GHCB_DOORBELL_OFF_FLAGS, "flags");
_Static_assert(offsetof(ghcb_doorbell_t, no_eoi) == GHCB_DOORBELL_OFF_NO_EOI, "no_eoi");
_Static_assert(offsetof(ghcb_doorbell_t, events) == GHCB_DOORBELL_OFF_EVENTS, "events");
_Static_assert(offsetof(ghcb_doorbell_t, vmpl1) == GHCB_DOORBELL_OFF_VMPL1, "vmpl1");
_Static_assert(offsetof(ghcb_doorbell_t, vmpl2) == GHCB_DOORBELL_OFF_VMPL2, "vmpl2");
_Static_assert(offsetof(ghcb_doorbell_t, vmpl3) == GHCB_DOORBELL_OFF_VMPL3, "vmpl3");
_Static_assert(offsetof(ghcb_doorbell_t, reserved_100) == GHCB_DOORBELL_OFF_END, "end");
_Static_assert(sizeof(ghcb_doorbell_t) == GHCB_DOORBELL_SIZE, "size");

#endif
