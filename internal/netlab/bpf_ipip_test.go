package netlab_test

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
)

const vethMTU = 1500

// kernelTunnel returns two hosts whose kernels have a tunnel, over a veth of that name on each.
func kernelTunnel(t *testing.T) path {
	t.Helper()
	labtest.Need(t, "bpf")
	lab := labtest.New(t)
	p := path{
		a: newHost(t, lab, "a"), addrA: netip.MustParseAddr("172.56.1.101"),
		b: newHost(t, lab, "b"), addrB: netip.MustParseAddr("172.56.2.101"),
	}
	if err := lab.Veth(p.a, "veth", p.b, "veth"); err != nil {
		t.Fatal(err)
	}
	outerA, outerB := netip.MustParsePrefix("192.168.6.101/24"), netip.MustParsePrefix("192.168.6.102/24")
	attachIPIP(t, p, "veth", outerA, outerB)
	attachIPIP(t, p.reverse(), "veth", outerB, outerA)
	return p
}

// attachIPIP gives p.a's dev an address, and makes its kernel an end of the tunnel.
func attachIPIP(t *testing.T, p path, dev string, local, remote netip.Prefix) {
	t.Helper()
	if err := p.a.AddAddr(dev, local.String()); err != nil {
		t.Fatal(err)
	}
	err := p.a.AttachIPIP(netlab.KernelIPIP{
		Dev:   dev,
		Local: local.Addr(), Remote: remote.Addr(),
		InnerLocal: p.addrA, InnerRemote: p.addrB,
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestAttachIPIP(t *testing.T) {
	p := kernelTunnel(t)
	p.pingBothWays(t)
	p.ping(t, netlab.PingOptions{Size: vethMTU - 2*packet.IPv4HdrLen - 8, DF: true})
	p.transfer(t, 64<<20)
	p.reverse().transfer(t, 64<<20)
}

// A raw socket gets more than the MTU in one packet from a kernel on the same machine, and an inner checksum that is not
// finished.
func TestAttachIPIPSuperpackets(t *testing.T) {
	p := kernelTunnel(t)
	conn := connect(t, p)
	defer conn.Close()
	raw := listenIPIP(t, p.b)
	defer raw.Close()
	detachIPIP(t, p.b)

	deadline, _ := labtest.Context(t).Deadline()
	if err := raw.SetReadDeadline(deadline); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write(make([]byte, 1<<16)); err != nil {
		t.Fatal(err)
	}
	outer := make(packet.IPv4, packet.IPv4MaxLen)
	for n := 0; n <= vethMTU; {
		var err error
		if n, _, _, _, err = raw.ReadMsgIP(outer, nil); err != nil {
			t.Fatal(err)
		}
	}
	inner := packet.IPv4(outer.Payload())
	if !inner.Valid() || inner.TotalLength() != len(inner) || inner.Protocol() != packet.ProtoTCP {
		t.Fatalf("% x … is not TCP, or not whole", inner[:packet.IPv4HdrLen])
	}
	if got, want := packet.TCP(inner.Payload()).Checksum(), packet.PseudoHeaderSum(inner); got != want {
		t.Errorf("checksum of %d bytes is %#04x, want %#04x, the sum of the pseudo-header", len(inner), got, want)
	}
}

// connect returns p.a's end of a TCP connection to p.b.
func connect(t *testing.T, p path) net.Conn {
	t.Helper()
	var listener net.Listener
	if err := p.b.Do(func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(p.addrB, 0).String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	var conn net.Conn
	if err := p.a.Do(func() (err error) {
		conn, err = net.Dial("tcp", listener.Addr().String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return conn
}

func listenIPIP(t *testing.T, host *netlab.Host) *net.IPConn {
	t.Helper()
	var conn *net.IPConn
	if err := host.Do(func() (err error) {
		conn, err = net.ListenIP("ip4:4", nil)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return conn
}

// detachIPIP takes the programs of AttachIPIP off the veth, so that raw sockets see what they would have taken.
func detachIPIP(t *testing.T, host *netlab.Host) {
	t.Helper()
	link, err := host.Netlink().LinkByName("veth")
	if err != nil {
		t.Fatal(err)
	}
	if err := host.Netlink().QdiscDel(&netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Parent: netlink.HANDLE_CLSACT},
		QdiscType:  "clsact",
	}); err != nil {
		t.Fatal(err)
	}
}
