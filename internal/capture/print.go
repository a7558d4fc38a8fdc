package capture

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"syscall"
)

// Printer prints packets as tcpdump does, each with its comment behind.
type Printer struct {
	*Writer
	tcpdump  *exec.Cmd
	pipe     io.WriteCloser
	messages bytes.Buffer
	printed  chan struct{}

	mu       sync.Mutex
	comments map[int]string // of packets that tcpdump has not printed yet, by number
	number   int            // of the last packet
	err      error          // of out
}

// NewPrinter starts tcpdump, which prints to out until Close.
func NewPrinter(out io.Writer, f File) (*Printer, error) {
	p := &Printer{
		// Buffered by lines, numbered, and without names for addresses.
		tcpdump:  exec.Command("tcpdump", "-l", "--number", "-n", "-r", "-"),
		printed:  make(chan struct{}),
		comments: map[int]string{},
	}
	p.tcpdump.Stderr = &p.messages
	p.tcpdump.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is not for it: it prints all first
	var err error
	if p.pipe, err = p.tcpdump.StdinPipe(); err != nil {
		return nil, err
	}
	lines, err := p.tcpdump.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.tcpdump.Start(); err != nil {
		return nil, tcpdumpError(err, "")
	}
	go p.print(lines, out)
	p.Writer, err = NewWriter(p.pipe, f)
	if err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// print prints tcpdump's lines, and after an error of out takes them all the same.
func (p *Printer) print(lines io.Reader, out io.Writer) {
	defer close(p.printed)
	for scanner := bufio.NewReader(lines); ; {
		line, err := scanner.ReadString('\n')
		if line != "" {
			_, outErr := io.WriteString(out, p.comment(strings.TrimSuffix(line, "\n"))+"\n")
			_ = p.fail(outErr) // which the next Write returns
		}
		if err != nil {
			return
		}
	}
}

// comment returns a line of tcpdump without the packet's number, and with its comment. Lines
// that continue a packet have no number.
func (p *Printer) comment(line string) string {
	var number int
	digits, text, _ := strings.Cut(strings.TrimLeft(line, " "), "  ")
	if _, err := fmt.Sscanf(digits, "%d", &number); err != nil {
		return line
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if c, ok := p.comments[number]; ok {
		delete(p.comments, number)
		text += "; " + c
	}
	return text
}

// fail returns the first error that it got, this one perhaps.
func (p *Printer) fail(err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = err
	}
	return p.err
}

// Write prints a packet, or returns why an earlier one could not be printed.
func (p *Printer) Write(packet Packet) error {
	p.mu.Lock()
	p.number++
	if packet.Comment != "" {
		p.comments[p.number] = packet.Comment
	}
	p.mu.Unlock()
	if err := p.fail(nil); err != nil {
		return err
	}
	return p.Writer.Write(packet)
}

// Close waits until all packets have been printed.
func (p *Printer) Close() error {
	_ = p.pipe.Close()
	<-p.printed
	if err := p.tcpdump.Wait(); err != nil {
		return tcpdumpError(err, p.messages.String())
	}
	return p.fail(nil)
}
