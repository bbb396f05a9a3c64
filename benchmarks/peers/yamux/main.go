// A peer of the tunnel: hashicorp/yamux over TLS, as a source, a relay and a sink in processes of their own, told by lines of JSON.
//
//	yamux relay               says {"port": N}; passes each stream of the source on to the sink
//	yamux sink PORT           says {"up": true}; drains or echoes, as the first byte of a stream says
//	yamux source PORT         for each {"do": "bulk"|"echo"|"ping", "seconds": S, "streams": N} says {"value": …}
//
// The wire of a stream is that of benchmarks/tunnels.py: a byte that says what it is, given back, then blocks of one size.
package main

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/yamux"
)

const (
	block  = 65536
	ping   = 1024
	little = 64
)

func must[T any](value T, err error) T {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return value
}

func settings() *yamux.Config {
	made := yamux.DefaultConfig()
	made.LogOutput = io.Discard
	made.MaxStreamWindowSize = 1 << 20
	return made
}

func certificate() tls.Certificate {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der := must(x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func dial(port string, role byte) *yamux.Session {
	made := must(tls.Dial("tcp", "127.0.0.1:"+port, &tls.Config{InsecureSkipVerify: true})) // loopback, and nothing secret
	must(made.Write([]byte{role}))
	return must(yamux.Client(made, settings()))
}

func relay() {
	listener := must(tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{certificate()}}))
	fmt.Printf("{\"port\": %d}\n", listener.Addr().(*net.TCPAddr).Port)
	sessions := map[byte]*yamux.Session{}
	for len(sessions) < 2 {
		made := must(listener.Accept())
		role := make([]byte, 1)
		must(io.ReadFull(made, role))
		sessions[role[0]] = must(yamux.Server(made, settings()))
	}
	for {
		in, err := sessions['s'].AcceptStream()
		if err != nil {
			return
		}
		out := must(sessions['k'].OpenStream())
		go pass(in, out)
		go pass(out, in)
	}
}

func pass(from, to *yamux.Stream) {
	_, _ = io.CopyBuffer(to, from, make([]byte, block))
	_ = to.Close()
}

func sink(port string) {
	session := dial(port, 'k')
	fmt.Println(`{"up": true}`)
	for {
		stream, err := session.AcceptStream()
		if err != nil {
			return
		}
		go serve(stream)
	}
}

func serve(stream *yamux.Stream) {
	defer stream.Close()
	kind := make([]byte, 1)
	if _, err := io.ReadFull(stream, kind); err != nil {
		return
	}
	if _, err := stream.Write(kind); err != nil {
		return
	}
	if kind[0] == 'e' {
		buffer := make([]byte, block)
		for {
			size, err := stream.Read(buffer)
			if err != nil {
				return
			}
			if _, err := stream.Write(buffer[:size]); err != nil {
				return
			}
		}
	}
	buffer, total := make([]byte, block), uint64(0)
	for {
		if _, err := io.ReadFull(stream, buffer); err != nil {
			return
		}
		total += block
		if buffer[0] == 0 {
			_ = binary.Write(stream, binary.BigEndian, total)
			return
		}
	}
}

func source(port string) {
	session := dial(port, 's')
	fmt.Println(`{"up": true}`)
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		var asked struct {
			Do      string
			Seconds float64
			Streams int
			Stop    bool
		}
		if json.Unmarshal(lines.Bytes(), &asked) != nil || asked.Stop {
			return
		}
		switch asked.Do {
		case "bulk":
			fmt.Printf("{\"value\": %f}\n", bulk(session, asked.Seconds, nil))
		case "echo":
			fmt.Printf("{\"value\": %f}\n", echo(session, asked.Seconds, asked.Streams))
		default:
			took, rate := beside(session, asked.Seconds)
			fmt.Printf("{\"value\": {\"p50\": %f, \"p99\": %f, \"bulk\": %f}}\n", rank(took, 50), rank(took, 99), rate)
		}
	}
}

// A stream on which the sink has answered.
func begun(session *yamux.Session, kind byte) *yamux.Stream {
	stream := must(session.OpenStream())
	said := []byte{kind}
	must(stream.Write(said))
	must(io.ReadFull(stream, said))
	return stream
}

// Until the time is over, or until stopped is set.
func bulk(session *yamux.Session, seconds float64, stopped *atomic.Bool) float64 {
	stream := begun(session, 'b')
	defer stream.Close()
	buffer := make([]byte, block)
	buffer[0] = 1
	began, sent := time.Now(), uint64(0)
	for last := false; !last; sent += block {
		if stopped != nil && stopped.Load() || stopped == nil && time.Since(began).Seconds() >= seconds {
			last = true
			buffer[0] = 0
		}
		must(stream.Write(buffer))
	}
	var total uint64
	if err := binary.Read(stream, binary.BigEndian, &total); err != nil || total != sent {
		fmt.Fprintln(os.Stderr, "lost:", sent, total, err)
		os.Exit(1)
	}
	return float64(total) / time.Since(began).Seconds()
}

func echo(session *yamux.Session, seconds float64, streams int) float64 {
	var trips atomic.Int64
	var all sync.WaitGroup
	var opened []*yamux.Stream
	for range streams {
		opened = append(opened, begun(session, 'e'))
	}
	began := time.Now()
	for _, stream := range opened {
		all.Add(1)
		go func() {
			defer all.Done()
			defer stream.Close()
			buffer := make([]byte, ping)
			for time.Since(began).Seconds() < seconds {
				must(stream.Write(buffer))
				must(io.ReadFull(stream, buffer))
				trips.Add(1)
			}
		}()
	}
	all.Wait()
	return float64(trips.Load()) / time.Since(began).Seconds()
}

// Milliseconds of each round trip of 64 bytes while bulk goes the same way, and the rate of that.
func beside(session *yamux.Session, seconds float64) ([]float64, float64) {
	var stopped atomic.Bool
	rate := make(chan float64)
	go func() { rate <- bulk(session, seconds, &stopped) }()
	stream := begun(session, 'e')
	defer stream.Close()
	var took []float64
	buffer := make([]byte, little)
	for began := time.Now(); time.Since(began).Seconds() < seconds; {
		sent := time.Now()
		must(stream.Write(buffer))
		must(io.ReadFull(stream, buffer))
		took = append(took, 1000*time.Since(sent).Seconds())
	}
	stopped.Store(true)
	return took, <-rate
}

// Nearest rank.
func rank(values []float64, percent int) float64 {
	sort.Float64s(values)
	return values[max(0, (len(values)*percent+99)/100-1)]
}

func main() {
	switch {
	case len(os.Args) == 2 && os.Args[1] == "relay":
		relay()
	case len(os.Args) == 3 && os.Args[1] == "sink":
		sink(os.Args[2])
	case len(os.Args) == 3 && os.Args[1] == "source":
		source(os.Args[2])
	default:
		fmt.Fprintln(os.Stderr, "usage: yamux relay | sink PORT | source PORT")
		os.Exit(2)
	}
}
