package main

import (
	"context"
	"errors"
	"io"
	"maps"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"banyan.dev/examples/shim-go/shimv1"
)

var errSuperseded = errors.New("another controller reconciles this cluster now")

// service speaks banyan.shim.v1. What a person should read goes out as FAILED_PRECONDITION with a sentence: the controller shows it.
type service struct {
	shimv1.UnimplementedShimServiceServer
	cluster *cluster

	mu     sync.Mutex
	cancel context.CancelCauseFunc // ends the reconciliation under way
}

func refuse(err error) error { return status.Error(codes.FailedPrecondition, err.Error()) }

func (s *service) Describe(context.Context, *shimv1.DescribeRequest) (*shimv1.DescribeResponse, error) {
	return &shimv1.DescribeResponse{Description: &shimv1.Description{
		Kind: "shim-go", Version: "1", Contract: "banyan.shim.v1", ComponentKinds: []string{"command"}, Limits: "none",
	}}, nil
}

// Reconcile: the controller that came last is the one that lives. When it goes, what runs goes on.
func (s *service) Reconcile(stream grpc.BidiStreamingServer[shimv1.ReconcileRequest, shimv1.ReconcileResponse]) error {
	ctx, cancel := context.WithCancelCause(stream.Context())
	defer cancel(nil)
	s.mu.Lock()
	if s.cancel != nil {
		s.cancel(errSuperseded)
	}
	s.cancel = cancel
	s.mu.Unlock()

	changed, forget := s.cluster.watch()
	defer forget()
	go func() { // the controller's direction
		for first := true; ; first = false {
			request, err := stream.Recv()
			if err == nil && first && !request.GetDesired().GetFull() {
				err = errors.New("the first Desired of a reconciliation must be full")
			}
			if err != nil {
				cancel(err)
				return
			}
			s.cluster.want(request.GetDesired())
		}
	}()
	told := map[string]*shimv1.ObservedWork{}
	for full := true; ; full = false {
		select {
		case <-changed:
		case <-ctx.Done():
			return ending(context.Cause(ctx))
		}
		if ctx.Err() != nil { // whoever was superseded says nothing more
			return ending(context.Cause(ctx))
		}
		observed := difference(told, s.cluster.picture())
		if full {
			observed.Full, observed.Nodes = true, &shimv1.NodeList{Nodes: []*shimv1.Node{s.cluster.describeNode()}}
		} else if len(observed.Works)+len(observed.Removed) == 0 {
			continue
		}
		if err := stream.Send(&shimv1.ReconcileResponse{Observed: observed}); err != nil {
			return err
		}
	}
}

func ending(cause error) error {
	switch {
	case cause == nil, errors.Is(cause, io.EOF): // it ended its direction in good order
		return nil
	case errors.Is(cause, errSuperseded):
		return status.Error(codes.Aborted, cause.Error())
	default:
		return refuse(cause)
	}
}

// difference says what is new in now, and remembers that it was told.
func difference(told, now map[string]*shimv1.ObservedWork) *shimv1.Observed {
	observed := &shimv1.Observed{}
	for uid, work := range now {
		if !proto.Equal(told[uid], work) {
			observed.Works = append(observed.Works, work)
		}
	}
	for uid := range told {
		if now[uid] == nil {
			observed.Removed = append(observed.Removed, uid)
		}
	}
	clear(told)
	maps.Copy(told, now)
	return observed
}

type openStream = grpc.BidiStreamingServer[shimv1.OpenRequest, shimv1.OpenResponse]

func (s *service) Open(stream openStream) error {
	request, err := stream.Recv()
	if err != nil {
		return err
	}
	switch target := request.GetTarget(); target.GetKind() {
	case "application":
		return s.openApplication(stream, target)
	case "logs":
		return s.openLogs(stream, target)
	default:
		return refuse(errors.New(target.GetKind() + ": this shim opens application and logs"))
	}
}

func opened(stream openStream) error {
	return stream.Send(&shimv1.OpenResponse{Message: &shimv1.OpenResponse_Opened{Opened: &shimv1.Opened{}}})
}

func send(stream openStream, data []byte) error {
	return stream.Send(&shimv1.OpenResponse{Message: &shimv1.OpenResponse_Data{Data: data}})
}

func (s *service) openApplication(stream openStream, target *shimv1.OpenTarget) error {
	connection, err := s.cluster.dial(target.GetUid(), target.GetComponent(), target.GetInstance())
	if err != nil {
		return refuse(err)
	}
	defer connection.Close()
	if err := opened(stream); err != nil {
		return err
	}
	both := make(chan error, 1)
	go func() { // towards the application
		for {
			request, err := stream.Recv()
			if err == nil {
				_, err = connection.Write(request.GetData())
			}
			if err != nil {
				connection.CloseWrite()
				both <- err
				return
			}
		}
	}()
	buffer := make([]byte, 64<<10)
	for {
		count, err := connection.Read(buffer)
		if count > 0 {
			if err := send(stream, buffer[:count]); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return refuse(err)
		}
	}
	if err := send(stream, nil); err != nil { // an empty piece is the end of our direction
		return err
	}
	select {
	case <-both:
	case <-stream.Context().Done():
	}
	return nil
}

func (s *service) openLogs(stream openStream, target *shimv1.OpenTarget) error {
	found, err := s.cluster.find(target.GetUid(), target.GetComponent(), target.GetInstance(), false)
	if err != nil {
		return refuse(err)
	}
	follow, err := parseLogOptions(target.GetOptions())
	if err != nil {
		return refuse(err)
	}
	if err := opened(stream); err != nil {
		return err
	}
	err = found.log.copy(stream.Context(), follow, func(data []byte) error { return send(stream, data) })
	if err != nil {
		return err
	}
	return send(stream, nil)
}
