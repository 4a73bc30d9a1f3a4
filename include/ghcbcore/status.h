/* Status codes of the core, and nothing else.
 *
 * Every function of these headers that can refuse returns one of these; 0 is success and a
 * function writes through its result pointer only then. `ghcbcore/errors.py` has one exception
 * for each status from 1 to GHCB_STATUS_END - 1.
 */
#ifndef GHCBCORE_STATUS_H
#define GHCBCORE_STATUS_H

/* cffi: begin */
#define GHCB_OK 0
#define GHCB_E_CODE_MISMATCH 1  /* the answer's code does not belong to the request */
#define GHCB_E_RESERVED_BITS 2  /* a field that must be zero is not */
#define GHCB_E_ECHO_MISMATCH 3  /* the answer repeats another value than was sent */
#define GHCB_E_STATE_CONFLICT 4 /* page or CPU is not in a state that allows this */
#define GHCB_E_OUT_OF_RANGE 5   /* a value does not fit its field or its space */
#define GHCB_E_UNALIGNED 6      /* an address or frame lacks its alignment */
#define GHCB_E_UNKNOWN_CODE 7   /* no row of the protocol has this code; the value is kept */
#define GHCB_STATUS_END 8
/* cffi: end */

#endif
