"""VMCOREINFO: what the crashed kernel tells dump tools about itself, as lines of text.

Source: Linux 6.1 kernel/crash_core.c, arch/x86/kernel/crash_core_64.c; which of them
makedumpfile 1.7 asks for. ``NUMBER(sme_mask)`` is how tools learn of the C-bit: signed decimal,
0 without encryption and on TDX.
"""

from __future__ import annotations

from .kernel import BUDDY, FLAG, MAX_ORDER, OFFLINE, Kernel

__all__ = ["SME_MASK", "vmcoreinfo"]

SME_MASK = "NUMBER(sme_mask)"

SIZES = {
    "page": 64,
    "mem_section": 16,
    "pglist_data": 172032,
    "zone": 1664,
    "free_area": 104,
    "list_head": 16,
    "nodemask_t": 128,
    "printk_ringbuffer": 88,
    "prb_desc": 24,
    "printk_info": 88,
}
OFFSETS = {
    "uts_namespace.name": 0,
    "page.flags": 0,
    "page._refcount": 52,
    "page.mapping": 24,
    "page.lru": 8,
    "page._mapcount": 48,
    "page.private": 40,
    "page.compound_dtor": 16,
    "page.compound_order": 17,
    "page.compound_head": 8,
    "mem_section.section_mem_map": 0,
    "zone.free_area": 192,
    "free_area.free_list": 0,
    "list_head.next": 0,
    "list_head.prev": 8,
    "printk_ringbuffer.desc_ring": 0,
    "printk_ringbuffer.text_data_ring": 48,
    "printk_ringbuffer.fail": 80,
    "prb_desc_ring.count_bits": 0,
    "prb_desc_ring.descs": 8,
    "prb_desc_ring.infos": 16,
    "prb_desc_ring.head_id": 24,
    "prb_desc_ring.tail_id": 32,
    "prb_desc.state_var": 0,
    "prb_desc.text_blk_lpos": 8,
    "prb_data_blk_lpos.begin": 0,
    "prb_data_blk_lpos.next": 8,
    "prb_data_ring.size_bits": 0,
    "prb_data_ring.data": 8,
    "printk_info.seq": 0,
    "printk_info.ts_nsec": 8,
    "printk_info.text_len": 16,
    "printk_info.caller_id": 20,
    "atomic_long_t.counter": 0,
}
LENGTHS = {"mem_section": 2048, "zone.free_area": MAX_ORDER + 1, "free_area.free_list": 6}
NUMBERS = {
    "NR_FREE_PAGES": 0,
    "PG_lru": FLAG["lru"],
    "PG_private": 13,
    "PG_swapcache": 10,
    "PG_swapbacked": FLAG["swapbacked"],
    "PG_slab": 9,
    "PG_hwpoison": 23,
    "PG_head_mask": 1 << 16,
    "PAGE_BUDDY_MAPCOUNT_VALUE": BUDDY,
    "HUGETLB_PAGE_DTOR": 2,
    "PAGE_OFFLINE_MAPCOUNT_VALUE": OFFLINE,
    "SECTION_SIZE_BITS": 27,
    "MAX_PHYSMEM_BITS": 46,
    "KERNEL_IMAGE_SIZE": 1 << 30,
    "pgtable_l5_enabled": 0,
}
SYMBOLS = (
    "init_uts_ns",
    "node_online_map",
    "swapper_pg_dir",
    "_stext",
    "mem_section",
    "prb",
    "clear_seq",
    "init_top_pgt",
)


def vmcoreinfo(kernel: Kernel, *, exports_mask: bool = True, crash_time: int = 1) -> bytes:
    """Return the text of the note.

    Parameters
    ----------
    kernel : Kernel
    exports_mask : bool
        False: a kernel that does not say its C-bit.
    crash_time : int
        Seconds since 1970; makedumpfile takes no 0.
    """
    lines = [
        f"OSRELEASE={kernel.release}",
        "PAGESIZE=4096",
        *(f"SYMBOL({name})={kernel.symbols[name]:x}" for name in SYMBOLS),
        *(f"SIZE({name})={value}" for name, value in SIZES.items()),
        *(f"OFFSET({name})={value}" for name, value in OFFSETS.items()),
        *(f"LENGTH({name})={value}" for name, value in LENGTHS.items()),
        *(f"NUMBER({name})={value}" for name, value in NUMBERS.items()),
        f"NUMBER(phys_base)={kernel.phys_base}",
        "KERNELOFFSET=0",
    ]
    if exports_mask:
        lines.append(f"{SME_MASK}={kernel.c_bit}")
    lines.append(f"CRASHTIME={crash_time}")
    return "".join(f"{line}\n" for line in lines).encode()
