package capture

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/bpf"

	"goipip/internal/netlab/labtest"
	"goipip/internal/packet"
)

// header is an IPv4 header with options of so many bytes, and what follows.
func header(protocol uint8, from, to string, options int, payload ...byte) []byte {
	p := make(packet.IPv4, packet.IPv4HdrLen+options)
	p.InitHeader()
	p[0] = 4<<4 | byte(len(p)/4)
	p.SetTotalLength(len(p) + len(payload))
	p.SetProtocol(protocol)
	p.SetSource(netip.MustParseAddr(from).As4())
	p.SetDestination(netip.MustParseAddr(to).As4())
	return append(p, payload...)
}

// Outer packets are those between the ends, and ICMP errors that quote such a packet.
func TestEnds_Filter(t *testing.T) {
	const local, remote, other, router = "192.0.2.1", "198.51.100.2", "192.0.2.7", "203.0.113.1"
	icmp := func(typ byte, quote []byte, options int) []byte {
		return header(1, router, local, options, append([]byte{typ, 1, 0, 0, 0, 0, 0, 0}, quote...)...)
	}
	sent, received := header(4, local, remote, 0, 0x45), header(4, remote, local, 0, 0x45)
	for _, c := range []struct {
		what           string
		packet         []byte
		keep, anyLocal bool // with the local address, and with any
	}{
		{"sent", sent, true, true},
		{"received", received, true, true},
		{"received with options", header(4, remote, local, 8), true, true},
		{"sent from another address", header(4, other, remote, 0), false, true},
		{"received at another address", header(4, remote, other, 0), false, true},
		{"of another tunnel", header(4, local, other, 0), false, false},
		{"from itself", header(4, local, local, 0), false, false},
		{"another protocol", header(17, local, remote, 0), false, false},
		{"ping to the remote end", header(1, local, remote, 0, 8, 0, 0, 0, 0, 0, 0, 0), false, false},
		{"an error about a packet sent", icmp(3, sent, 0), true, true},
		{"one about a packet received", icmp(11, received, 0), true, true},
		{"one with options", icmp(12, sent, 12), true, true},
		{"source quench", icmp(4, sent, 0), true, true},
		{"redirect", icmp(5, sent, 0), true, true},
		{"an echo request that looks like an error", icmp(8, sent, 0), false, false},
		{"an error about another tunnel", icmp(3, header(4, other, router, 0), 0), false, false},
		{"one about another protocol", icmp(3, header(17, local, remote, 0), 0), false, false},
		{"one with half a quote", icmp(3, sent[:18], 0), false, false},
		{"too short", sent[:10], false, false},
		{"nothing", nil, false, false},
	} {
		for _, ends := range []Ends{
			{Local: netip.MustParseAddr(local), Remote: netip.MustParseAddr(remote)},
			{Remote: netip.MustParseAddr(remote)},
		} {
			want := c.keep
			if !ends.Local.IsValid() {
				want = c.anyLocal
			}
			if got := runs(t, ends.filter(nil), c.packet); got != want {
				t.Errorf("%s: kept by %+v: %v, want %v", c.what, ends, got, want)
			}
			if runs(t, ends.filter([]bpf.Instruction{bpf.RetConstant{Val: 0}}), c.packet) {
				t.Errorf("%s: kept by %+v against the rest", c.what, ends)
			}
		}
	}
}

func runs(t *testing.T, program []bpf.Instruction, packet []byte) bool {
	t.Helper()
	if _, err := bpf.Assemble(program); err != nil {
		t.Fatal(err)
	}
	vm, err := bpf.NewVM(program)
	if err != nil {
		t.Fatal(err)
	}
	n, err := vm.Run(packet)
	if err != nil {
		t.Fatal(err)
	}
	return n > 0
}

// A filter that tcpdump has compiled chooses packets that begin with an IP header.
func TestCompile(t *testing.T) {
	labtest.Need(t, "tcpdump")
	t.Parallel()
	udp := header(17, "10.0.0.1", "10.0.0.2", 0, 0, 53, 0x80, 0, 0, 8, 0, 0)
	for expression, want := range map[string]bool{
		"":                                       true,
		"udp src port 53":                        true,
		"src host 10.0.0.1 and ip":               true,
		"tcp or icmp":                            false,
		"greater 29":                             false,
		"-1 + 2 = 1":                             true, // no option of tcpdump
		"(ip6 or host 10.0.0.2) and not less 27": true,
	} {
		f, err := Compile(labtest.Context(t), expression)
		if err != nil || f.Matches(udp) != want {
			t.Errorf("%q: matches %v, %v, want %v", expression, !want, err, want)
		}
	}
	for expression, want := range map[string]string{
		"udp portt 53": "can't parse filter expression: syntax error",
		"len > ":       "can't parse",
	} {
		if _, err := Compile(labtest.Context(t), expression); err == nil || !strings.HasPrefix(err.Error(), fmt.Sprintf("filter %q: ", expression)) ||
			!strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", expression, err, want)
		}
	}
}

func TestReadProgram(t *testing.T) {
	if p, err := readProgram("2\n48 0 0 9\n6 0 0 4294967295\n"); err != nil || len(p) != 2 || p[1] != (bpf.RawInstruction{Op: 6, K: 1<<32 - 1}) {
		t.Errorf("%v, %v", p, err)
	}
	for _, text := range []string{"", "0\n", "1\n", "2\n6 0 0 0\n", "x\n6 0 0 0\n", "1\n6 0 0\n", "1\n6 0 256 0\n", "1\n6 0 0 x\n"} {
		if p, err := readProgram(text); err == nil {
			t.Errorf("%q is the program %v", text, p)
		}
	}
}

// Packets are printed in order, each with its own comment, whatever tcpdump makes of them.
func TestPrinter(t *testing.T) {
	labtest.Need(t, "tcpdump")
	t.Parallel()
	var out bytes.Buffer
	p, err := NewPrinter(&out, File{Interfaces: []string{"tun01"}})
	if err != nil {
		t.Fatal(err)
	}
	const packets = 2000
	udp := header(17, "10.0.0.1", "10.0.0.2", 0, 0, 53, 0x80, 0, 0, 8, 0, 0)
	var want []string
	for i := range packets {
		data := udp[:[]int{len(udp), 19, 0}[i%3]]
		one := Packet{Time: time.Unix(int64(i), 0), Interface: "tun01", Data: data, Length: len(udp)}
		end := ""
		if i%2 == 0 {
			one.Comment = fmt.Sprintf("comment %d", i)
			end = "; " + one.Comment
		}
		want = append(want, end)
		if err := p.Write(one); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(p.Flush(), p.Close()); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != packets {
		t.Fatalf("%d lines of %d packets, %q …", len(lines), packets, lines[:10])
	}
	for i, line := range lines {
		_, comment, _ := strings.Cut(line, "; ")
		if comment != strings.TrimPrefix(want[i], "; ") || strings.HasPrefix(line, " ") {
			t.Fatalf("line %d: %q, want it to end with %q", i, line, want[i])
		}
	}
}

// A Printer whose output fails says so, and does not hang.
func TestPrinter_Fails(t *testing.T) {
	labtest.Need(t, "tcpdump")
	t.Parallel()
	read, write := io.Pipe()
	read.CloseWithError(io.ErrShortWrite)
	p, err := NewPrinter(write, File{Interfaces: []string{"tun01"}})
	if err != nil {
		t.Fatal(err)
	}
	one := Packet{Interface: "tun01", Data: header(17, "10.0.0.1", "10.0.0.2", 0), Length: 20}
	labtest.WaitFor(t, "the error", func() bool { return errors.Is(errors.Join(p.Write(one), p.Flush()), io.ErrShortWrite) })
	if err := p.Close(); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("Close: %v", err)
	}
}

// Without tcpdump the error says what can be done without.
func TestNoTcpdump(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if _, err := Compile(context.Background(), "icmp"); !errors.Is(err, errNoTcpdump) {
		t.Errorf("Compile: %v", err)
	}
	if _, err := NewPrinter(io.Discard, File{Interfaces: []string{"tun01"}}); !errors.Is(err, errNoTcpdump) {
		t.Errorf("NewPrinter: %v", err)
	}
}
