// What PyTorch asks of a GPU before it computes anything, for a machine without one: the word that
// this build knows of GPUs, which the autograd engine wants, and a device with one idle stream.
// Loaded before PyTorch, see fake_gpu.py.

#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

constexpr auto kind = c10::DeviceType::CUDA;

struct Guard final : c10::impl::NoOpDeviceGuardImpl<kind> {
  static c10::Stream stream() { return c10::Stream(c10::Stream::DEFAULT, {kind, 0}); }
  c10::Device getDevice() const override { return {kind, 0}; }
  c10::Device exchangeDevice(c10::Device) const override { return getDevice(); }
  c10::Stream getStream(c10::Device) const noexcept override { return stream(); }
  c10::Stream exchangeStream(c10::Stream) const noexcept override { return stream(); }
  void record(void**, const c10::Stream&, c10::DeviceIndex, c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
};

struct Hooks final : at::CUDAHooksInterface {
  explicit Hooks(at::CUDAHooksArgs) {}
  bool isBuilt() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return false; }
  long versionCuDNN() const override { return 0; }
  long versionRuntimeCuDNN() const override { return 0; }
};

}  // namespace

namespace at {
// Preferred, so that the hooks of a build for GPUs give way to these.
C10_REGISTER_TYPED_CLASS_WITH_PRIORITY(CUDAHooksRegistry, "CUDAHooks", c10::REGISTRY_PREFERRED,
                                       Hooks)
}  // namespace at

extern "C" void pretend_there_is_a_gpu() {
  static const Guard guard;
  c10::impl::device_guard_impl_registry[static_cast<size_t>(kind)].store(&guard);
}
