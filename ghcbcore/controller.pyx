"""The keys of a machine in their slots: who reads what of encrypted memory.

The slots of the memory controllers are those of Genoa's data fabric: none, one for each ASID, the
IOMMU's, and SME's for the host. An access names one of them, its *domain*; a caller hands over the
bytes and where they lie. Nothing here holds memory or says who may access what: see
``ghcbcore.encryption`` for the cipher, and ``ghcbcore/cipher.h`` for what is an assumption.

Units: ``spa`` counts bytes, without the C-bit, and is a multiple of 16, as all lengths are.

Source: AMD-ASPFW (key slots; what ACTIVATE, DEACTIVATE and SHUTDOWN_EX do with them); SEVurity
(Wilke et al. 2020) IX; Linux admin-guide/kernel-parameters (``kvm-amd.ciphertext_hiding_asids``).
"""

import numpy as np

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

cimport cython
from ghcbcore cimport clib
from ghcbcore.encryption cimport (
    Cipher,
    crypt_any,
    integer_of,
    mode_of,
    place_of,
    seed_bytes,
    size_of,
    tweaks_of,
)

from ghcbcore import errors as _errors

__all__ = ["Controller"]


@cython.final
cdef class Controller:
    """Controller(mode, n_asids, seed, *, key_bytes=None, tweaks=None, unit_bytes=64, n_channels=1, channel_bytes=4096)\n--\n
    The keys of a machine, in their slots, and all accesses by domain.

    A domain is the number of a key slot: ``GHCB_KEY_SLOT_NONE`` (no encryption; the host's accesses
    without the C-bit), an ASID, ``GHCB_KEY_SLOT_IOMMU``, ``GHCB_KEY_SLOT_SME`` (the host's accesses
    with it). IOMMU and SME have keys from the beginning, as after a reset; an ASID has none before
    ``install``.

    Parameters
    ----------
    mode : "xe", "xex" or "xts"
        One for all domains.
    n_asids : int
        1 to 1006.
    seed : int
        Below 2**128. Keys are derived of it, of the slot, and of how many the slot had before.
    key_bytes : int, optional
        Of ``"xts"``: 64 (the default) or 32.
    tweaks, unit_bytes, n_channels, channel_bytes
        See ``Cipher``; one for all domains.

    Attributes
    ----------
    hides_ciphertext : bool
        Whether the host reads 0xFF instead of an SNP guest's ciphertext (SNP_INIT_EX bit 3). False
        at first; may be set. See ``host_reads``.

    Raises
    ------
    ValueError, OutOfRange
        An argument, by its name.

    Notes
    -----
    An access uses the key that the slot has when it begins. ACTIVATE installs, DEACTIVATE leaves
    the key in place, SHUTDOWN_EX with ``iommu`` zeroes; whether a guest may run or a command is
    legal is firmware's affair, not the controller's.

    Examples
    --------
    >>> controller = Controller("xex", 15, seed=1)
    >>> controller.install(3)
    >>> dram = controller.encrypt(b"sixteen letters.", 0x1000, 3)
    >>> bytes(controller.decrypt(dram, 0x1000, 3))
    b'sixteen letters.'
    >>> bytes(controller.decrypt(dram, 0x1000, 0)) == bytes(dram)
    True
    """

    def __cinit__(
        self, mode, n_asids, seed, *, key_bytes=None, tweaks=None,
        unit_bytes=1 << clib.GHCB_CIPHER_UNIT_SHIFT, n_channels=1, channel_bytes=4096,
    ):
        cdef uint32_t number = mode_of(mode)
        asids = integer_of(n_asids, "n_asids")
        if not clib.GHCB_KEY_SLOT_FIRST_ASID <= asids <= clib.GHCB_KEY_SLOT_LAST_ASID:
            raise _errors.OutOfRange(
                f"n_asids = {asids}: {clib.GHCB_KEY_SLOT_FIRST_ASID} to"
                f" {clib.GHCB_KEY_SLOT_LAST_ASID} are possible"
            )
        if key_bytes is None:
            is_xts = number == clib.GHCB_CIPHER_XTS
            key_bytes = 2 * clib.GHCB_AES_KEY_256 if is_xts else clib.GHCB_AES_KEY_128
        size = integer_of(key_bytes, "key_bytes")
        if size < 0 or size > 64 or not clib.ghcb_cipher_key_fits(number, size):
            raise _errors.OutOfRange(f"key_bytes = {size}: {mode!r} has no such keys")
        if number == clib.GHCB_CIPHER_XTS and tweaks is not None:
            raise ValueError("tweaks: 'xts' has none")
        seed_bytes(seed, self.seed)
        self.mode = mode
        self.n_asids = asids
        self.key_bytes = size
        self.hides_ciphertext = False
        self.settings = {
            "tweaks": None if tweaks is None else tweaks_of(tweaks),
            "unit_bytes": unit_bytes,
            "n_channels": n_channels,
            "channel_bytes": channel_bytes,
        }
        self.ciphers = {}
        self.installs = {}
        self.active = set()
        self.install(clib.GHCB_KEY_SLOT_SME)
        self.install(clib.GHCB_KEY_SLOT_IOMMU)

    cdef int slot_of(self, object domain) except -1:
        slot = integer_of(domain, "domain")
        if not 0 <= slot <= self.n_asids and slot not in (
            clib.GHCB_KEY_SLOT_IOMMU, clib.GHCB_KEY_SLOT_SME
        ):
            raise _errors.OutOfRange(
                f"domain = {slot}: neither an ASID (up to {self.n_asids}) nor a slot of the host"
            )
        return slot

    cdef Cipher cipher_of(self, object domain):
        cdef int slot = self.slot_of(domain)
        if slot == clib.GHCB_KEY_SLOT_NONE:
            return None
        cipher = self.ciphers.get(slot)
        if cipher is None:
            raise _errors.StateConflict(f"domain = {slot}: no key was installed")
        return cipher

    cdef int keyed_slot(self, object domain) except -1:
        cdef int slot = self.slot_of(domain)
        if slot == clib.GHCB_KEY_SLOT_NONE:
            raise _errors.OutOfRange("domain = 0: this slot has no key")
        return slot

    def install(self, domain, key=None):
        """Give a slot a key: what ACTIVATE does. What it had before is lost, and so is the content.

        Parameters
        ----------
        domain : int
        key : bytes, optional
            As long as the mode's keys are. Without it one that the slot never had before.

        Raises
        ------
        OutOfRange
            No such slot, or slot 0.
        ValueError
            The length of ``key``.
        """
        cdef int slot = self.keyed_slot(domain)
        cdef uint8_t own[64]
        if key is None:
            clib.ghcb_cipher_draw(
                self.seed, clib.GHCB_CIPHER_SORT_KEY, <uint64_t> slot,
                self.installs.get(slot, 0), own, self.key_bytes
            )
            given = own[:self.key_bytes]
        else:
            given = key
            if len(given) != self.key_bytes:
                raise ValueError(f"key has {len(given)} bytes; keys here have {self.key_bytes}")
        cipher = Cipher(self.mode, given, **self.settings)
        if key is None:
            self.installs[slot] = self.installs.get(slot, 0) + 1
        self.ciphers[slot] = cipher
        self.active.add(slot)

    def deactivate(self, domain):
        """End a slot's use: what DEACTIVATE does. The key stays, and still decrypts.

        Raises
        ------
        OutOfRange
            No such slot, or slot 0.
        StateConflict
            The slot is not active.
        """
        cdef int slot = self.keyed_slot(domain)
        if slot not in self.active:
            raise _errors.StateConflict(f"domain = {slot} is not active")
        self.active.remove(slot)

    def zero_all(self):
        """Overwrite the keys of all ASIDs with zeros: what SHUTDOWN_EX with ``iommu`` does.

        No ASID is active any more, and all have the same key. IOMMU and SME keep theirs. Zeros are
        the keys themselves, in every channel, not a seed of them.
        """
        cipher = Cipher(self.mode, bytes(self.key_bytes), **{**self.settings, "n_channels": 1})
        asids = range(clib.GHCB_KEY_SLOT_FIRST_ASID, self.n_asids + 1)
        self.ciphers.update(dict.fromkeys(asids, cipher))
        self.active.difference_update(asids)

    def is_active(self, domain):
        """Return whether a key was installed and neither deactivated nor zeroed since.

        Raises
        ------
        OutOfRange
            No such slot.
        """
        return self.slot_of(domain) in self.active

    def cipher(self, domain):
        """Return the ``Cipher`` that a slot has now; ``None`` for slot 0.

        Raises
        ------
        OutOfRange
            No such slot.
        StateConflict
            No key was ever installed there.
        """
        return self.cipher_of(domain)

    def encrypt(self, const uint8_t[::1] data not None, spa, domain, out=None):
        """Return what lies in DRAM after ``domain`` has written ``data`` at ``spa``.

        Arguments and errors as of ``Cipher.encrypt``, and OutOfRange or StateConflict for a domain
        that does not exist or never got a key. Domain 0 copies.
        """
        return crypt_any(self.cipher_of(domain), False, data, spa, out)

    def decrypt(self, const uint8_t[::1] data not None, spa, domain, out=None):
        """Return what ``domain`` reads at ``spa`` where ``data`` lies in DRAM. See ``encrypt``.

        For what somebody else has written that is noise, the same noise each time.
        """
        return crypt_any(self.cipher_of(domain), True, data, spa, out)

    def seen(self, const uint8_t[::1] data not None, spa, writer, reader, out=None, *, new_spa=None):
        """Return what ``reader`` reads after ``writer`` has written ``data`` at ``spa``.

        Parameters
        ----------
        data, spa, out
            As of ``Cipher.encrypt``.
        writer, reader : int
            Domains.
        new_spa : int, optional
            Somebody has copied the ciphertext there, and ``reader`` reads there. See
            ``Cipher.moved``.

        Returns
        -------
        uint8 array, shape (n,)

        Raises
        ------
        Unaligned, OutOfRange, StateConflict, ValueError
            As ``encrypt``. Nothing is written.
        """
        cdef Cipher first = self.cipher_of(writer), second = self.cipher_of(reader)
        if new_spa is None:
            new_spa = spa
        place_of(new_spa, "new_spa", size_of(data))
        written = crypt_any(first, False, data, spa, out)
        return crypt_any(second, True, written, new_spa, written)

    def host_reads(
        self, const uint8_t[::1] data not None, spa, is_snp, out=None, *,
        domain=clib.GHCB_KEY_SLOT_NONE,
    ):
        """Return what the host reads at ``spa`` where ``data`` lies in DRAM.

        Parameters
        ----------
        data, spa, out
            As of ``Cipher.encrypt``.
        is_snp : bool array, shape (n_pages,)
            For each 4 KiB page that is touched, from the first on: does it belong to an SNP guest?
        domain : int, optional
            0 (no C-bit) or ``GHCB_KEY_SLOT_SME`` (C-bit).

        Returns
        -------
        uint8 array, shape (n,)
            0xFF in the pages of SNP guests if ``hides_ciphertext``; else as ``decrypt``.

        Raises
        ------
        Unaligned, OutOfRange, ValueError
            As ``encrypt``; another domain; another shape or dtype of ``is_snp``. Nothing is written.
        """
        cdef uint64_t n = size_of(data), place = place_of(spa, "spa", n), at = 0, size, page = 0
        if self.slot_of(domain) not in (clib.GHCB_KEY_SLOT_NONE, clib.GHCB_KEY_SLOT_SME):
            raise _errors.OutOfRange(f"domain = {domain} is not the host's")
        pages = np.asarray(is_snp)
        n_pages = (place % clib.GHCB_PAGE_SIZE + n + clib.GHCB_PAGE_SIZE - 1) // clib.GHCB_PAGE_SIZE
        if n == 0:
            n_pages = 0
        if pages.dtype != np.bool_ or pages.shape != (n_pages,):
            raise ValueError(
                f"is_snp: {pages.dtype}, shape {pages.shape}; must be bool ({n_pages},)"
            )
        out = crypt_any(self.cipher_of(domain), True, data, spa, out)
        if not self.hides_ciphertext or n == 0:
            return out
        cdef const uint8_t[::1] hidden = np.ascontiguousarray(pages).view(np.uint8)
        cdef uint8_t[::1] into = out
        with nogil:
            while at < n:
                size = clib.GHCB_PAGE_SIZE - (place + at) % clib.GHCB_PAGE_SIZE
                if size > n - at:
                    size = n - at
                if hidden[page]:
                    memset(&into[at], clib.GHCB_CIPHER_HIDDEN, size)
                at += size
                page += 1
        return out
