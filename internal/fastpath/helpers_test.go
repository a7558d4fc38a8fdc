package fastpath

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"goipip/encap"
	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
	"goipip/tun"
)

const etherLen = 14

var gateway = netip.MustParseAddr("192.0.2.2")

// site is a host with a tunnel, and an Ethernet whose far end is another host's.
type site struct {
	host, far *netlab.Host
	fast      *Host
	tunnel    *Tunnel
	device    *tun.Device
	reader    *tun.Reader
	ether     netlink.LinkAttrs // eth0; eth1 leads to the far host too
	farMAC    net.HardwareAddr
	link      *socket // on the tunnel's link
	wire      *socket // at the far end of the Ethernet
}

// newSite returns a site that ends with the test.
func newSite(t *testing.T) *site {
	t.Helper()
	labtest.Need(t, "root", "tun", "bpf")
	lab := labtest.New(t)
	host, err := lab.Host("host")
	must(t, err)
	far, err := lab.Host("far")
	must(t, err)
	for _, name := range []string{"eth0", "eth1"} {
		must(t, lab.Veth(host, name, far, name))
		must(t, host.SetMTU(name, 65535))
		must(t, far.SetMTU(name, 65535))
	}
	s := siteOf(t, host, far)
	s.wire = newSocket(t, far, linkOf(t, far, "eth0").Index)
	return s
}

// siteOf gives a host a tunnel, over eth0 to another host.
func siteOf(t *testing.T, host, far *netlab.Host) *site {
	t.Helper()
	s := &site{host: host, far: far, reader: tun.NewReader()}
	s.ether = linkOf(t, host, "eth0")
	s.farMAC = linkOf(t, far, "eth0").HardwareAddr
	must(t, host.Netlink().NeighSet(&netlink.Neigh{
		LinkIndex: s.ether.Index, IP: gateway.AsSlice(), HardwareAddr: s.farMAC, State: netlink.NUD_PERMANENT,
	}))
	must(t, host.Do(func() error {
		links, err := tun.NewHost()
		if err != nil {
			return err
		}
		defer links.Close()
		s.device, err = links.Open(tun.Config{Name: "tun0", Queues: 1, Offload: true})
		if err != nil {
			return err
		}
		t.Cleanup(func() { s.device.Close() })
		return s.device.Setup(tun.Link{MTU: 1480, Remote: gateway})
	}))
	must(t, host.SetMTU("tun0", 65535))
	must(t, host.Do(func() (err error) {
		if s.fast, err = Open(); err != nil {
			return err
		}
		t.Cleanup(s.fast.Close)
		if s.tunnel, err = s.fast.Add(s.device.Index()); err != nil {
			return err
		}
		t.Cleanup(s.tunnel.Close)
		return s.tunnel.Attach(s.ether.Index)
	}))
	s.link = newSocket(t, host, s.device.Index())
	return s
}

// plan returns an ordinary Plan.
func (s *site) plan() Plan {
	return Plan{
		Outer: encap.Outer{
			Format: encap.IPIP,
			Local:  netip.MustParseAddr("192.0.2.1"),
			Remote: netip.MustParseAddr("198.51.100.1"),
			TTL:    64,
		},
		MTU:     1500,
		Device:  s.ether.Index,
		Gateway: gateway,
	}
}

func (s *site) use(t *testing.T, p Plan) {
	t.Helper()
	if !s.tunnel.Use(p) {
		t.Fatalf("the plan is not used: %+v", p)
	}
}

// send sends a packet by the tunnel's link, and returns the frame that arrives at the far
// host, or the packet that is left to the engine. Both are valid until the next call.
func (s *site) send(t *testing.T, p tun.Packet, protocol uint16) (frame, left tun.Packet) {
	t.Helper()
	s.reader.Reset()
	s.link.send(t, p, protocol)
	deadline := time.Now().Add(5 * time.Second)
	for time.Now().Before(deadline) {
		if p, ok := s.wire.receive(t); ok {
			return p, left
		}
		packets, err := s.reader.Read(s.device.Queues()[0])
		must(t, err)
		if len(packets) > 0 {
			return frame, packets[0]
		}
	}
	t.Fatalf("nothing became of %x", p.Bytes)
	return frame, left
}

// socket is a packet socket on a device, with a virtio-net header.
type socket struct {
	fd, device int
	sending    []byte
	receiving  []byte
}

func newSocket(t *testing.T, host *netlab.Host, device int) *socket {
	t.Helper()
	s := &socket{fd: -1, device: device, receiving: make([]byte, 1<<17)}
	t.Cleanup(func() { unix.Close(s.fd) })
	must(t, host.Do(func() (err error) {
		if s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(s.fd, unix.SOL_PACKET, unix.PACKET_VNET_HDR, 1); err != nil {
			return err
		}
		return unix.Bind(s.fd, &unix.SockaddrLinklayer{Ifindex: device, Protocol: packet.NetworkOrder(unix.ETH_P_IP)})
	}))
	return s
}

func (s *socket) send(t *testing.T, p tun.Packet, protocol uint16) {
	t.Helper()
	s.sending = append(s.sending[:0], make([]byte, packet.VNetHdrLen)...)
	p.VNet.Encode(s.sending)
	s.sending = append(s.sending, p.Bytes...)
	must(t, unix.Sendto(s.fd, s.sending, 0, &unix.SockaddrLinklayer{Ifindex: s.device, Protocol: packet.NetworkOrder(protocol)}))
}

// receive returns a packet that has come, if there is one, from its link-layer header on.
func (s *socket) receive(t *testing.T) (tun.Packet, bool) {
	t.Helper()
	n, from, err := unix.Recvfrom(s.fd, s.receiving, 0)
	if errors.Is(err, unix.EAGAIN) {
		return tun.Packet{}, false
	}
	must(t, err)
	if from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING {
		return tun.Packet{}, false
	}
	b := s.receiving[:n]
	return tun.Packet{Bytes: b[packet.VNetHdrLen:], VNet: packet.DecodeVNetHdr(b)}, true
}

func linkOf(t *testing.T, host *netlab.Host, name string) netlink.LinkAttrs {
	t.Helper()
	l, err := host.Netlink().LinkByName(name)
	must(t, err)
	return *l.Attrs()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
