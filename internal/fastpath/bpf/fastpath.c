/* The packets of tunnels about which there is nothing to decide, inside the kernel.
 *
 * Both programs let go on (NEXT) what they are not sure about: the engine has it then, and
 * decides. Rule ids (T5, G2 ...) refer to docs/rules.md. */
#include <stdbool.h>

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "fastpath.h"

/* Used for nothing: these helpers ask for no licence. */
char __license[] SEC("license") = "MIT";

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct plan);
	__uint(max_entries, MAX_PLANS);
} plans SEC(".maps");

/* The plan for packets of a link, by its index. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, MAX_TUNNELS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} links SEC(".maps");

/* The plan for packets between two outer addresses. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct pair);
	__type(value, __u32);
	__uint(max_entries, MAX_TUNNELS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} pairs SEC(".maps");

/* This host's addresses. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32);
	__type(value, __u8);
	__uint(max_entries, 65536);
	__uint(map_flags, BPF_F_NO_PREALLOC);
} own SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct counter);
	__uint(max_entries, MAX_TUNNELS);
} counters SEC(".maps");

/* More flags of bpf_skb_adjust_room for decapsulation. */
const volatile __u64 decap_flags = 0;

/* Of linux/bpf.h, where that is not as new. */
enum {
	NEXT = -1, /* TCX_NEXT */
	DROP = 2,  /* TCX_DROP */
};
#define DECAP_L3_IPV4 (1ULL << 7) /* BPF_F_ADJ_ROOM_DECAP_L3_IPV4 */
#define DECAP_IPXIP4 (1ULL << 11) /* BPF_F_ADJ_ROOM_DECAP_IPXIP4: a superpacket is no tunnel's any more */

enum {
	ECN_MASK = 3,
	ECN_ECT1 = 1,
	ECN_ECT0 = 2,
	ECN_CE = 3,
};

/* More bytes than these, with headers, bpf_skb_change_head refuses for any packet but a
 * superpacket (BPF_SKB_MAX_LEN in net/core/filter.c: some 16000). */
enum { LONGEST = 15000 };

enum { TCP_FLAGS = 13, TCP_SYN = 2 }; /* a byte of the header, and a bit there */

#define IP_DF 0x4000
#define IP_FRAGMENT 0x3fff /* more fragments, or an offset */

/* plan_of returns the plan that a map refers to, or NULL. */
static __always_inline const struct plan *plan_of(const __u32 *slot)
{
	return slot ? bpf_map_lookup_elem(&plans, slot) : 0;
}

static __always_inline struct counter *counter_of(const struct plan *p)
{
	__u32 i = p->counter;

	return bpf_map_lookup_elem(&counters, &i);
}

/* sum returns the one's complement sum of a header without options. */
static __always_inline __u16 sum(const struct iphdr *h)
{
	const __u32 *word = (const void *)h;
	__u64 s = (__u64)word[0] + word[1] + word[2] + word[3] + word[4];

	s = (s & 0xffffffff) + (s >> 32);
	s = (s & 0xffff) + (s >> 16);
	s = (s & 0xffff) + (s >> 16);
	return (s & 0xffff) + (s >> 16);
}

/* plain reports whether a header has no options and is no fragment's. */
static __always_inline bool plain(const struct iphdr *h)
{
	return *(const __u8 *)h == 0x45 && !(h->frag_off & bpf_htons(IP_FRAGMENT));
}

/* inspect reports whether the engine wants to see a TCP packet: one with SYN, or without a whole
 * header. header is where its plain IP header stands. */
static __always_inline bool inspect(struct __sk_buff *skb, const struct plan *p, const struct iphdr *h, __u32 header)
{
	__u8 flags;

	return p->flags & PLAN_INSPECT && h->protocol == IPPROTO_TCP &&
	       (bpf_skb_load_bytes(skb, header + sizeof(*h) + TCP_FLAGS, &flags, 1) || flags & TCP_SYN);
}

/* packet_len returns the length of an inner packet, or of the longest that a superpacket will
 * be cut into, in bytes; 0 if that is not known, or too long. */
static __always_inline __u32 packet_len(struct __sk_buff *skb, const struct iphdr *inner)
{
	__u8 doff;

	if (!skb->gso_size)
		return skb->len <= LONGEST ? skb->len : 0;
	switch (inner->protocol) {
	case IPPROTO_TCP:
		if (bpf_skb_load_bytes(skb, sizeof(*inner) + 12, &doff, 1))
			return 0;
		return sizeof(*inner) + (doff >> 4) * 4 + skb->gso_size;
	case IPPROTO_UDP:
		return sizeof(*inner) + sizeof(struct udphdr) + skb->gso_size;
	}
	return 0;
}

/* Packets that leave by a tunnel's link. */
SEC("tcx/egress")
int goipip_out(struct __sk_buff *skb)
{
	__u32 link = skb->ifindex, len = skb->len, longest;
	const struct plan *p = plan_of(bpf_map_lookup_elem(&links, &link));
	struct iphdr inner, outer = {};
	struct bpf_redir_neigh next = {};
	struct counter *c;

	if (!p || p->link != link)
		return NEXT;
	if (skb->protocol != bpf_htons(ETH_P_IP) || bpf_skb_load_bytes(skb, 0, &inner, sizeof(inner)))
		return NEXT;
	if (!plain(&inner) || bpf_ntohs(inner.tot_len) != len || /* T1 */
	    len > 65535 - sizeof(outer) ||
	    !inner.ttl ||                      /* G3 */
	    inner.saddr == p->remote ||        /* G4 */
	    inner.protocol == IPPROTO_IPIP ||  /* G4, T14 */
	    inspect(skb, p, &inner, 0))
		return NEXT;
	if (p->flags & PLAN_INHERIT_DF && !(inner.frag_off & bpf_htons(IP_DF))) /* T11: needs an ID */
		return NEXT;
	longest = packet_len(skb, &inner);
	if (!longest || longest + sizeof(outer) > p->mtu) /* T6 */
		return NEXT;
	c = counter_of(p);
	if (!c)
		return NEXT;

	outer.version = 4;
	outer.ihl = 5;
	outer.tos = (p->flags & PLAN_INHERIT_TOS ? inner.tos : p->tos) & ~ECN_MASK; /* T9 */
	outer.tos |= (inner.tos & ECN_MASK) == ECN_CE ? ECN_ECT0 : inner.tos & ECN_MASK;
	outer.tot_len = bpf_htons(sizeof(outer) + len);
	outer.frag_off = bpf_htons(IP_DF);
	outer.ttl = p->ttl ? p->ttl : inner.ttl; /* T10 */
	outer.protocol = IPPROTO_IPIP;
	outer.saddr = p->local;
	outer.daddr = p->remote;
	outer.check = ~sum(&outer);
	next.nh_family = 2 /* AF_INET */;
	next.ipv4_nh = p->gateway;

	/* A packet that is another tunnel's already is refused here. */
	if (bpf_skb_adjust_room(skb, sizeof(outer), BPF_ADJ_ROOM_MAC,
				BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4))
		return NEXT;
	if (bpf_skb_store_bytes(skb, 0, &outer, sizeof(outer), 0) ||
	    bpf_skb_change_head(skb, ETH_HLEN, 0)) {
		c->refused++;
		return DROP;
	}
	skb->mark = p->mark;
	c->sent_packets++;
	c->sent_bytes += len;
	return bpf_redirect_neigh(p->device, &next, sizeof(next), 0);
}

#define MILLISECOND 1000000ULL
#define TRAIN_TIME (100 * MILLISECOND)
enum { TRAIN_LEN = 16 };

/* unmerged reports whether a TCP packet is one of a stream that a program in user space sends:
 * long packets in quick succession, none of which the kernel has numbered, as it does when it
 * cuts a superpacket (inet_gso_segment). Nothing has merged them, so that the receiver would
 * acknowledge every other one, and each acknowledgement costs that program a system call. The
 * engine merges them, and has all others too while such a stream lasts, so that they stay in
 * order. */
static __always_inline bool unmerged(struct counter *c, const struct plan *p, const struct iphdr *outer, __u32 len,
				     bool merged)
{
	__u64 now = bpf_ktime_get_ns(), began = c->train_began, n = c->train_len;

	if (2 * len > p->mtu) { /* a long one */
		if (merged || outer->id || now - began > MILLISECOND) {
			began = now;
			n = 0;
		}
		n += !merged && !outer->id;
		/* Both always: without CAP_PERFMON, the verifier takes no store to one place or another. */
		c->train_began = began;
		c->train_len = n;
		if (n >= TRAIN_LEN)
			c->train_until = now + TRAIN_TIME;
	}
	return now < c->train_until;
}

/* Packets that come by the device of a plan. */
SEC("tcx/ingress")
int goipip_in(struct __sk_buff *skb)
{
	const __u32 at_outer = ETH_HLEN, at_inner = at_outer + sizeof(struct iphdr);
	struct {
		struct iphdr outer, inner;
	} h;
	const struct iphdr *outer = &h.outer, *inner = &h.inner;
	struct pair pair;
	const struct plan *p;
	struct counter *c;
	__u32 len, first;
	__u8 tos, ecn;

	if (skb->protocol != bpf_htons(ETH_P_IP) || skb->pkt_type != PACKET_HOST || skb->vlan_present ||
	    bpf_skb_load_bytes(skb, at_outer, &h, sizeof(h)) || outer->protocol != IPPROTO_IPIP)
		return NEXT;
	pair.local = outer->daddr;
	pair.remote = outer->saddr;
	p = plan_of(bpf_map_lookup_elem(&pairs, &pair)); /* R2, G1 */
	if (!p || p->local != outer->daddr || p->remote != outer->saddr || p->device != skb->ifindex)
		return NEXT;
	c = counter_of(p);
	len = skb->len - at_inner;
	if (!c || (inner->protocol == IPPROTO_TCP && unmerged(c, p, outer, len, skb->gso_size)))
		return NEXT;
	if (!plain(outer) || sum(outer) != 0xffff || bpf_ntohs(outer->tot_len) != skb->len - at_outer)
		return NEXT;
	if (!plain(inner) || bpf_ntohs(inner->tot_len) != len || /* R4 */
	    !inner->ttl ||                                        /* G3 */
	    inner->protocol == IPPROTO_IPIP ||
	    inspect(skb, p, inner, at_inner))
		return NEXT;
	first = bpf_ntohl(inner->daddr) >> 24; /* G2 */
	if (first == 0 || first == 127)
		return NEXT;
	first = bpf_ntohl(inner->saddr) >> 24;
	if (first == 0 || first == 127 || first >= 224 || bpf_map_lookup_elem(&own, &inner->saddr))
		return NEXT;
	/* The kernel would take a superpacket that it forwards for a tunnel's. The other packets of
	 * its stream stay in order with it. */
	if ((skb->gso_size || inner->protocol == IPPROTO_TCP) && !(decap_flags & DECAP_IPXIP4) &&
	    !bpf_map_lookup_elem(&own, &inner->daddr))
		return NEXT;

	tos = inner->tos;
	ecn = outer->tos & ECN_MASK; /* R5 */
	if (!(tos & ECN_MASK)) {
		if (ecn)
			return NEXT;
	} else if (ecn == ECN_CE) {
		tos |= ECN_CE;
	} else if (ecn == ECN_ECT1 && (tos & ECN_MASK) == ECN_ECT0) {
		tos ^= ECN_ECT0 | ECN_ECT1;
	}
	if (tos != inner->tos &&
	    (bpf_l3_csum_replace(skb, at_inner + 10, bpf_htons(inner->tos), bpf_htons(tos), 2) ||
	     bpf_skb_store_bytes(skb, at_inner + 1, &tos, 1, 0)))
		return NEXT;

	if (bpf_skb_adjust_room(skb, -(__s32)sizeof(*outer), BPF_ADJ_ROOM_MAC,
				BPF_F_ADJ_ROOM_FIXED_GSO | DECAP_L3_IPV4 | decap_flags))
		return NEXT;
	c->received_packets++;
	c->received_bytes += len;
	return bpf_redirect(p->link, BPF_F_INGRESS);
}
