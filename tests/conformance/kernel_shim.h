/* What the kernel's internal headers take from the rest of the kernel, in as few words as they
 * need to be compiled in user space. Used with -nostdinc -include. No number of the protocol
 * stands here: those come from the headers that are being read.
 */
typedef unsigned char u8, __u8;
typedef unsigned short u16, __u16;
typedef unsigned int u32, __u32;
typedef unsigned long long u64, __u64;
typedef signed int s32, __s32;
typedef signed long long s64, __s64;
typedef unsigned long size_t;
typedef unsigned long phys_addr_t;
typedef struct { unsigned long value; } pte_t, pgd_t, pgprot_t;
typedef _Bool bool;
typedef unsigned gfp_t;
#define true 1
#define false 0
#define NULL ((void *)0)

#define BIT(n) (1UL << (n))
#define BIT_ULL(n) (1ULL << (n))
#define GENMASK(high, low) ((~0UL >> (63 - (high))) & (~0UL << (low)))
#define GENMASK_ULL(high, low) ((~0ULL >> (63 - (high))) & (~0ULL << (low)))
#define __user
#define __packed __attribute__((packed))
#define __always_inline inline
#define __always_unused
#define __noreturn
#define __init
#define PAGE_SIZE 4096UL
#define offsetof(type, member) __builtin_offsetof(type, member)
#define static_assert(condition) _Static_assert(condition, #condition)
#define BUILD_BUG_ON(condition) _Static_assert(!(condition), #condition)
#define ASSERT_STRUCT_OFFSET(type, field, offset) \
    BUILD_BUG_ON(offsetof(type, field) != (offset))

/* Named by declarations that are never used. */
#define EINVAL 1
#define ENODEV 1
#define ENOSYS 1
#define ENOTTY 1
enum pg_level { PG_LEVEL_4K, PG_LEVEL_2M };
struct insn { int unused; };
struct hv_vmcb_enlightenments { u8 unused[32]; };
void *ERR_PTR(long error);
bool test_bit(long bit, const unsigned long *words);
void __set_bit(long bit, unsigned long *words);
