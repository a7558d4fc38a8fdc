package bench

import (
	"bufio"
	"crypto/ecdh"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

const (
	wireguardPort = 51820
	wireguardMTU  = 1420 // wireguard-go's own choice, in bytes
)

// controlTimeout bounds one exchange over a control socket.
const controlTimeout = 5 * time.Second

// startWireguard runs wireguard-go. The name of its link has the host's, because
// both ends share a directory of control sockets.
func startWireguard(tb testing.TB, near, far *site) *netlab.Process {
	tb.Helper()
	path := labtest.BuildWireguard(tb)
	name := "wg-" + near.host.Name
	cmd := exec.Command(path, name)
	// As the option -f, but without a banner about the kernel's WireGuard.
	cmd.Env = append(os.Environ(), "WG_PROCESS_FOREGROUND=1")
	p := startProgram(tb, near, cmd)
	control := filepath.Join(filepath.Dir(path), name+".sock")
	labtest.WaitFor(tb, control, func() bool {
		conn, err := net.Dial("unix", control)
		return err == nil && conn.Close() == nil
	})
	if err := configureWireguard(control, near, far); err != nil {
		tb.Fatal(err)
	}
	setUp(tb, near, far, name, wireguardMTU)
	return p
}

// configureWireguard makes far the peer of near's end, by the protocol of
// wireguard.com/xplatform.
func configureWireguard(control string, near, far *site) error {
	own, err := wireguardKey(near)
	if err != nil {
		return err
	}
	other, err := wireguardKey(far)
	if err != nil {
		return err
	}
	conn, err := net.Dial("unix", control)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(controlTimeout)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(conn, "set=1\nprivate_key=%x\nlisten_port=%d\n"+
		"public_key=%x\nendpoint=%v\nallowed_ip=%v/32\n\n",
		own.Bytes(), wireguardPort,
		other.PublicKey().Bytes(), netip.AddrPortFrom(far.outer, wireguardPort), far.inner); err != nil {
		return err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && strings.TrimSpace(answer) != "errno=0" {
		err = errors.New(answer)
	}
	if err != nil {
		return fmt.Errorf("configure %s: %w", control, err)
	}
	return nil
}

// wireguardKey returns the private key of a site, which is no secret.
func wireguardKey(s *site) (*ecdh.PrivateKey, error) {
	seed := sha256.Sum256([]byte(s.inner.String()))
	return ecdh.X25519().NewPrivateKey(seed[:])
}
