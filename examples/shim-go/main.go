// A shim for Banyan in Go: runs components of kind command as plain processes on this machine.
//
// It is small on purpose: an example to begin from, and the proof that the contract (proto/banyan/shim/v1) can be kept without a line
// of Banyan's own code. README.md says what it leaves out.
package main

import (
	"flag"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"google.golang.org/grpc"

	"banyan.dev/examples/shim-go/shimv1"
)

const maxMessage = 64 << 20 // as the controller's side has it: a full Desired carries all files

func main() {
	listen := flag.String("listen", "", "where the controller calls: unix:/PATH")
	folder := flag.String("folder", "", "where instances, their logs and volumes live")
	node := flag.String("node", "", "name of this machine; default: its host name")
	bind := flag.String("bind", "127.0.0.1", "address on which site ports listen")
	flag.Parse()
	path, isUnix := strings.CutPrefix(*listen, "unix:")
	if !isUnix || !filepath.IsAbs(path) || *folder == "" || flag.NArg() > 0 {
		log.Fatal("usage: shim-go -listen unix:/PATH -folder DIR [-node NAME] [-bind ADDRESS]")
	}
	if *node == "" {
		*node, _ = os.Hostname()
	}
	if err := run(path, *folder, *node, *bind); err != nil {
		log.Fatal(err)
	}
}

func run(path, folder, node, bind string) error {
	syscall.Umask(0o077) // the socket is the only key: whoever may write to it may run programs as this user
	cluster, err := newCluster(folder, node, bind)
	if err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	server := grpc.NewServer(grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage))
	shimv1.RegisterShimServiceServer(server, &service{cluster: cluster})
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-stop
		server.Stop()
	}()
	log.Printf("serving %s", path)
	err = server.Serve(listener)
	cluster.end()
	return err
}
