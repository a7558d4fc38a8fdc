package resolver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// server answers questions on an address of the loopback, by UDP and TCP.
type server struct{ addr, port string }

// serve starts a server. records are the answers, as in a zone file, by name; a name with none exists without an
// address, and others do not exist.
func serve(t *testing.T, addr, port string, records map[string][]string) server {
	t.Helper()
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, question *dns.Msg) {
		reply := new(dns.Msg).SetReply(question)
		lines, ok := records[question.Question[0].Name]
		if !ok {
			reply.Rcode = dns.RcodeNameError
		}
		for _, line := range lines {
			if line == "SERVFAIL" {
				reply.Rcode = dns.RcodeServerFailure
				continue
			}
			record, err := dns.NewRR(line)
			if err != nil {
				t.Error(err)
			}
			reply.Answer = append(reply.Answer, record)
		}
		if w.LocalAddr().Network() == "udp" {
			reply.Truncate(dns.MinMsgSize)
		}
		w.WriteMsg(reply)
	})
	packets, err := net.ListenPacket("udp", net.JoinHostPort(addr, port))
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ = net.SplitHostPort(packets.LocalAddr().String())
	stream, err := net.Listen("tcp", net.JoinHostPort(addr, port))
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*dns.Server{{PacketConn: packets, Handler: handler}, {Listener: stream, Handler: handler}} {
		go s.ActivateAndServe()
		t.Cleanup(func() { s.Shutdown() })
	}
	return server{addr, port}
}

func TestAsk(t *testing.T) {
	long := []string{"many.example. 30 IN CNAME x.example."}
	for i := range 60 {
		long = append(long, fmt.Sprintf("x.example. 30 IN A 192.0.2.%d", i+1))
	}
	s := serve(t, "127.0.0.1", "0", map[string][]string{
		"one.example.":   {"one.example. 60 IN A 192.0.2.1"},
		"two.example.":   {"two.example. 60 IN A 192.0.2.2", "two.example. 20 IN A 192.0.2.3"},
		"alias.example.": {"alias.example. 5 IN CNAME one.example.", "one.example. 60 IN A 192.0.2.1"},
		"lost.example.":  {"lost.example. 5 IN CNAME nowhere.example."},
		"six.example.":   {},
		"many.example.":  long,
		"bad.example.":   {"SERVFAIL"},
	})
	conf := &dns.ClientConfig{Servers: []string{s.addr}, Port: s.port, Timeout: 5, Attempts: 2}
	for name, c := range map[string]struct {
		first string
		n     int
		ttl   time.Duration
		err   string
	}{
		"one.example.":   {"192.0.2.1", 1, time.Minute, ""},
		"two.example.":   {"192.0.2.2", 2, 20 * time.Second, ""},
		"alias.example.": {"192.0.2.1", 1, 5 * time.Second, ""},
		"many.example.":  {"192.0.2.1", 60, 30 * time.Second, ""}, // by TCP
		"lost.example.":  {"", 0, 0, "no IPv4 address"},
		"six.example.":   {"", 0, 0, "no IPv4 address"},
		"none.example.":  {"", 0, 0, "NXDOMAIN"},
		"bad.example.":   {"", 0, 0, "127.0.0.1 answers SERVFAIL"},
	} {
		a, err := ask(t.Context(), conf, name)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: %v, %v, want %s", name, a, err, c.err)
			}
			continue
		}
		if err != nil || len(a.Addrs) != c.n || a.Addrs[0] != netip.MustParseAddr(c.first) || a.TTL != c.ttl {
			t.Errorf("%s: %v, %v, want %d from %s on, for %v", name, a, err, c.n, c.first, c.ttl)
		}
	}
}

// A server that refuses, fails or is silent leaves the question to the next one, and one that knows no such name does not.
func TestAsk_NextServer(t *testing.T) {
	good := serve(t, "127.0.0.1", "0", map[string][]string{"gw.example.": {"gw.example. 60 IN A 192.0.2.1"}})
	serve(t, "127.0.0.2", good.port, map[string][]string{"gw.example.": {"SERVFAIL"}})
	serve(t, "127.0.0.3", good.port, nil)
	for first, want := range map[string]error{"127.0.0.2": nil, "127.0.0.4": nil, "127.0.0.3": errNoSuchName} { // nobody is at 127.0.0.4
		conf := &dns.ClientConfig{Servers: []string{first, good.addr}, Port: good.port, Timeout: 5, Attempts: 1}
		if a, err := ask(t.Context(), conf, "gw.example."); !errors.Is(err, want) {
			t.Errorf("%s first: %v, %v, want %v", first, a, err, want)
		}
	}
}

// A lookup that waits for a silent server ends with its context.
func TestAsk_Cancelled(t *testing.T) {
	silent, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	addr, port, _ := net.SplitHostPort(silent.LocalAddr().String())
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		silent.ReadFrom(make([]byte, dns.MinMsgSize)) // the question is there
		cancel()
	}()
	conf := &dns.ClientConfig{Servers: []string{addr}, Port: port, Timeout: 3600, Attempts: 2}
	if _, err := ask(ctx, conf, "gw.example."); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}
