package encap_test

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

	"goipip/encap"
	"goipip/internal/packet"
)

// The golden packets were made without the code of this project.

const goldenRequest = `
	45 00 0024        // version 4, IHL 5; TOS 0; total length 36
	beef 4000         // ID; DF
	40 01 67e7        // TTL 64; ICMP; checksum
	0a000001          // 10.0.0.1
	0a000002          // 10.0.0.2
	08 00 5435        // echo request; checksum
	1234 0001         // identifier; sequence number
	6162636465666768  // "abcdefgh"
`

const goldenRequestOuter = `
	45 00 0038        // version 4, IHL 5; TOS 0; total length 56 = 20 + 36
	0000 4000         // ID 0, as DF is set
	40 04 6751        // TTL 64, inherited; IPIP; checksum
	0a5a06ee          // 10.90.6.238, local
	c0a80181          // 192.168.1.129, remote
`

func TestGolden_Encap(t *testing.T) {
	inner := unhex(t, goldenRequest)
	e := newEncapsulator(t, encap.Outer{})
	got := append(mustEncap(t, e, inner), inner...)
	if diff := cmp.Diff(unhex(t, goldenRequestOuter+goldenRequest), []byte(got)); diff != "" {
		t.Errorf("on the wire (-want +got):\n%s", diff)
	}
}

// On its way, the reply was marked CE by a congested router, and DSCP AF11 by another.
const goldenReplyOuter = `
	45 2b 0038        // version 4, IHL 5; DSCP AF11, CE; total length 56
	1c46 0000         // ID; no flags
	3d 04 8de0        // TTL 61, three hops; IPIP; checksum
	c0a80181          // 192.168.1.129, our remote
	0a5a06ee          // 10.90.6.238, our local
`

const goldenReplySent = `
	45 ba 0024        // version 4, IHL 5; DSCP EF, ECT(0); total length 36
	2a17 0000         // ID; no flags
	3f 01 3d06        // TTL 63; ICMP; checksum
	0a000002          // 10.0.0.2
	0a000001          // 10.0.0.1
	0000 5c35         // echo reply; checksum
	1234 0001         // identifier; sequence number
	6162636465666768  // "abcdefgh"
`

const goldenReplyReceived = `
	45 bb 0024        // DSCP EF, as it was sent; CE, as it was marked
	2a17 0000
	3f 01 3d05        // TTL 63, as it was sent; checksum one less, for ECN one more
	0a000002
	0a000001
	0000 5c35
	1234 0001
	6162636465666768
`

func TestGolden_Decap(t *testing.T) {
	const padding = "000000000000" // up to Ethernet's 60 bytes
	d, err := encap.NewDecapsulator(encap.Outer{Format: encap.IPIP, Local: local, Remote: remote}, nil)
	if err != nil {
		t.Fatal(err)
	}
	outer := unhex(t, goldenReplyOuter+goldenReplySent+padding)
	got := mustDecap(t, d, outer)
	if diff := cmp.Diff(unhex(t, goldenReplyReceived), []byte(got)); diff != "" {
		t.Errorf("inner packet (-want +got):\n%s", diff)
	}
	if header := outer[:packet.IPv4HdrLen]; !bytes.Equal(header, unhex(t, goldenReplyOuter)) {
		t.Errorf("the outer header changed: % x", header)
	}
}
