package netlab_test

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"goipip/internal/netlab"
	"goipip/internal/netlab/labtest"
)

// A tunnel whose packets fill the queue of a device that hardly sends ends as any other, whatever the kernel allows its
// sockets, and another between the same two ends takes its place.
func TestHazard3_EndsWithFullQueue(t *testing.T) {
	t.Parallel()
	labtest.Need(t, "ip")
	small := netlab.RefusedCall{Number: unix.SYS_SETSOCKOPT, Arg: 2, Unless: bpf.JumpNotEqual, Value: unix.SO_SNDBUFFORCE, Errno: unix.EPERM}
	for _, options := range []string{"--tx auto", "--tx raw"} {
		for _, buffer := range []string{"large", "small"} {
			for _, way := range []string{"SIGTERM", "delete"} {
				t.Run(fmt.Sprintf("%s, %s buffer, %s", options, buffer, way), func(t *testing.T) {
					t.Parallel()
					l := newTunnelLab(t)
					// 500 bytes a second: a packet takes seconds, and the whole queue hours.
					run(t, l.ns01, "tc qdisc add dev veth01 root tbf rate 4kbit burst 2000 limit 32m")
					generator{Packets: l.end01.innerDatagrams(16, 1400)}.start(t, l.ns01)
					endsInTime(t, func(t *testing.T) time.Duration {
						tun01 := l.end01.startBy(t, func(cmd *exec.Cmd) (*netlab.Process, error) {
							if buffer == "small" {
								return l.ns01.StartRefusing(cmd, small)
							}
							return l.ns01.Start(cmd)
						}, strings.Fields(options)...)
						labtest.WaitFor(t, "packets to be lost", func() bool { return tun01.counters(t)["tx.dropped_congested"] > 1000 })
						begin := time.Now()
						if err := ways[way](tun01, l.end01); err != nil {
							t.Fatal(err)
						}
						if err := tun01.Wait(labtest.Context(t)); err != nil {
							t.Error(err)
						}
						took := time.Since(begin)
						if hasLink(l.ns01, l.end01.dev) {
							t.Errorf("%s is still there", l.end01.dev)
						}
						return took
					})
					l.end01.start(t, strings.Fields(options)...)
				})
			}
		}
	}
}
